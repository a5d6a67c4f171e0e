"""A base under adapters is restored from its files, or loaded anew where these changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError
from ai_toolkit_inference.engine.weights import tiny_folder


@pytest.fixture
def checkpoint(load, tmp_path) -> Path:
    """A tiny checkpoint of one's own."""
    load("sd15")
    folder = tmp_path / "sd15"
    shutil.copytree(tiny_folder(get_model("sd15")), folder)
    return folder


def unet_file(folder: Path) -> Path:
    (file,) = (folder / "unet").glob("*.safetensors")
    return file


def test_the_engine_restores_from_the_file(checkpoint, ask, lora):
    engine = Engine("cpu")
    request = ask(weights=checkpoint, adapters=((lora(), 1.0),), mode="merged", steps=1)
    engine.sample(request)
    assert engine._base is not None
    originals = engine._base.adapters._originals.values()
    assert len(originals) > 20
    folders = {original.file.parent.name for original in originals if original.file}
    assert folders == {"unet", "text_encoder"}
    assert all(original.file for original in originals)


@pytest.mark.parametrize("first", ["sample", "model"])
def test_after_a_lost_file_the_model_is_loaded_anew(checkpoint, ask, lora, tmp_path, first):
    """The new file looks like the old one, so that only restoring can tell."""
    engine = Engine("cpu")
    plain = ask(weights=checkpoint, steps=1)
    with_lora = ask(weights=checkpoint, adapters=((lora(), 1.0),), mode="merged", steps=1)
    before = engine.sample(plain).frames.tobytes()
    acting = engine.sample(with_lora).frames.tobytes()
    file = unet_file(checkpoint)
    shutil.copy2(file, tmp_path / "part")
    (tmp_path / "part").replace(file)
    with pytest.raises(CheckpointError, match="ask again"):
        engine.sample(plain) if first == "sample" else engine.model(plain.recipe)
    assert engine.sample(plain).frames.tobytes() == before
    assert engine.loads == 2
    assert engine.sample(with_lora).frames.tobytes() == acting != before


def test_a_checkpoint_written_over_is_loaded_anew(checkpoint, ask, lora):
    engine = Engine("cpu")
    adapters = {"adapters": ((lora(), 1.0),), "mode": "merged"}
    before = engine.sample(ask(weights=checkpoint, steps=1, **adapters)).frames.tobytes()
    file = unet_file(checkpoint)
    tensors = {name: weight * 0.9 for name, weight in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    for fields in ({}, adapters):
        request = ask(weights=checkpoint, steps=1, **fields)
        drawn = engine.sample(request).frames.tobytes()
        assert drawn == Engine("cpu").sample(request).frames.tobytes()
        assert drawn != before
    assert engine.loads == 2
