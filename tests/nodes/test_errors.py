"""What a node's errors say."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from ai_toolkit_inference.core.errors import AdapterError, InvalidInputError, MissingDependencyError
from ai_toolkit_inference.core.missing import PACK
from ai_toolkit_inference.nodes._errors import as_listed, plain_errors


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """ComfyUI's folders: loras, and one of its own within for checkpoints."""
    known = {"loras": [tmp_path / "loras"], "checkpoints": [tmp_path / "loras" / "big"]}
    stand_in = SimpleNamespace(folder_names_and_paths=known, get_folder_paths=known.__getitem__)
    monkeypatch.setitem(sys.modules, "folder_paths", stand_in)
    return tmp_path


def test_paths_become_the_names_of_the_lists(folders) -> None:
    lora, big = folders / "loras" / "a" / "b.safetensors", folders / "loras" / "big" / "c"
    assert (
        as_listed(f"{lora} and {big} differ") == f"a{os.sep}b.safetensors and checkpoints/c differ"
    )
    assert as_listed(f"in {folders}") == f"in {folders}"


def test_an_input_is_named_and_the_kind_of_error_kept(folders) -> None:
    path = str(folders / "loras" / "a.safetensors")
    with (
        pytest.raises(AdapterError, match=r"^lora_name a\.safetensors is damaged$") as refusal,
        plain_errors({path: "lora_name a.safetensors"}, "lora_name"),
    ):
        raise AdapterError(f"{path} is damaged")
    assert refusal.value.http_status == 400
    with pytest.raises(InvalidInputError, match=r"^url: no answer$"), plain_errors({}, "url"):
        raise InvalidInputError("no answer")
    with pytest.raises(ValueError, match="another"), plain_errors():
        raise ValueError("another")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("diffusers", str(PACK / "install.py")),
        ("diffusers.models", str(PACK / "install.py")),
        ("skimage.metrics", "-m pip install scikit-image"),
        ("av", "-m pip install av"),
        ("yaml", "-m pip install pyyaml"),
    ],
)
def test_a_missing_package_is_named_with_the_command(module: str, command: str) -> None:
    with pytest.raises(MissingDependencyError) as refusal, plain_errors():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    text = str(refusal.value)
    assert module in text and f"run `{sys.executable}" in text and command in text
    assert text.endswith("restart ComfyUI")
