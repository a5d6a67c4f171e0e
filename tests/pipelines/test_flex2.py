"""Flex.2: what stands for the pictures it is not given, and whose checkpoints it takes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import flex2
from ai_toolkit_inference.pipelines._loading import check_folder


def test_without_pictures_everything_is_to_be_painted_and_nothing_followed():
    latents = torch.full((1, 6, 64), 7.0, dtype=torch.bfloat16)
    absent = flex2._no_pictures(latents)
    assert absent.dtype == latents.dtype
    assert 64 + absent.shape[2] == flex2.CHANNELS == 196
    picture, mask, control = absent.split([64, 4, 64], dim=2)
    assert not picture.any()
    assert (mask == 1).all()
    assert not control.any()


def test_the_network_sees_them(engine, ask, monkeypatch):
    before = engine.sample(ask("flex2")).frames
    masked = flex2._no_pictures
    monkeypatch.setattr(flex2, "_no_pictures", lambda latents: 1 - masked(latents))
    assert not np.array_equal(engine.sample(ask("flex2")).frames, before)


def test_the_negative_prompt_is_not_looked_at_and_the_sampler_fixed(engine, ask):
    plain, negated = (engine.sample(ask("flex2", negative_prompt=n)).frames for n in ("", "blurry"))
    assert np.array_equal(plain, negated)
    with pytest.raises(InvalidInputError, match="'mean_flow' for flex2; allowed: flowmatch"):
        engine.sample(ask("flex2", sampler="mean_flow"))


def test_a_flux_checkpoint_is_refused(ask):
    folder = tiny_folder(get_model("flex1"))
    with pytest.raises(CheckpointError, match=r"takes 64 channels, Flex\.2's 196; give a folder"):
        Engine("cpu").sample(ask("flex2", weights=folder))


@pytest.mark.parametrize("name", ["FluxControlPipeline", "FluxPipeline", "Flex2Pipeline"])
def test_the_index_may_name_any_class_with_these_parts(tmp_path, engine, ask, name):
    spec = get_model("flex2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": name}))
    check_folder(spec, folder)
    frames = Engine("cpu").sample(ask("flex2", weights=folder)).frames
    assert np.array_equal(frames, engine.sample(ask("flex2")).frames)


def test_an_index_that_names_its_own_code_is_refused(tmp_path):
    spec = get_model("flex2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": ["pipeline", "Flex2Pipeline"]}))
    with pytest.raises(CheckpointError, match="flex2 needs a FluxControlPipeline"):
        check_folder(spec, folder)
