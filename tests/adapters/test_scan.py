"""What a LoRA file's header tells of the models it is for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.adapters import scan as scanning
from ai_toolkit_inference.adapters.scan import Scan, scan

LORAS = Path(__file__).resolve().parents[1] / "goldens" / "loras"
KNOWN = frozenset(spec.lora.base_model for spec in list_models())


def fits(file: Path, model: str) -> bool | None:
    return scan(file).fits(get_model(model), KNOWN)


@pytest.mark.parametrize("file", sorted(LORAS.glob("*.safetensors")), ids=lambda file: file.stem)
def test_the_trainers_file_fits_the_model_it_was_trained_on(file: Path) -> None:
    model = next(
        spec.id
        for spec in sorted(list_models(), key=lambda spec: -len(spec.id))
        if file.stem.startswith(f"{spec.id}-")
    )
    assert fits(file, model) is True
    assert fits(file, "sdxl" if model != "sdxl" else "flux") is False


def test_names_of_layers_tell_even_without_metadata(tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    part = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"
    save_file({part: torch.zeros(4, 3072), part.replace("_A", "_B"): torch.zeros(3072, 4)}, file)
    assert fits(file, "flux") is True and fits(file, "sd15") is False
    assert scan(file).title == "FLUX.1"


def test_what_tells_nothing_may_fit(tmp_path: Path) -> None:
    file = tmp_path / "strange.safetensors"
    tensors = {
        "a.new.layer.lora_A.weight": torch.zeros(4, 8),
        "a.new.layer.lora_B.weight": torch.zeros(8, 4),
    }
    save_file(tensors, file, {"ss_base_model_version": "of_another_program"})
    assert scan(file) == Scan("of_another_program", None, "of_another_program")
    assert fits(file, "flux") is None


@pytest.mark.parametrize("kind", ["checkpoint", "pickle", "cut", "empty", "text"])
def test_what_is_no_adapter_fits_nothing(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file.safetensors"
    save_file({} if kind == "empty" else {"conv_in.weight": torch.zeros(4)}, file)
    if kind == "pickle":
        file.write_bytes(b"\x80\x02rest")
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    if kind == "text":
        file = file.rename(tmp_path / "file.txt")
    assert scan(file) == Scan(readable=False)
    assert fits(file, "flux") is False
    assert scan(tmp_path / "missing.safetensors") == Scan(readable=False)


def test_weights_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header for more bytes than any disk has, in a sparse file that says so."""
    file = tmp_path / "large.safetensors"
    header = b'{"a.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,1099511627776]}}'
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        try:
            opened.truncate(8 + len(header) + (1 << 40))
        except OSError:
            pytest.skip("no sparse files of this size here")
    assert scan(file).readable


def test_a_file_is_read_again_only_after_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes((LORAS / "flux-0.12.26.safetensors").read_bytes())
    read: list[Path] = []
    header = scanning.read_header
    monkeypatch.setattr(scanning, "read_header", lambda path: read.append(path) or header(path))
    assert fits(file, "flux") is True and fits(file, "sd15") is False
    assert len(read) == 1
    file.write_bytes((LORAS / "sd15-0.12.26.safetensors").read_bytes())
    os.utime(file, ns=(1, 1))
    assert fits(file, "sd15") is True
    assert len(read) == 2
