"""The list of models: found by discovery, cheap to ask for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import UnknownModelError

LIST = """
import json, sys
from ai_toolkit_inference import list_models
ids = [spec.id for spec in list_models()]
print(json.dumps([ids, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_listing_imports_no_heavy_library():
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    ids, modules = json.loads(done.stdout)
    assert ids == [spec.id for spec in list_models()]
    assert not {"torch", "numpy", "diffusers", "transformers", "safetensors", "PIL"} & set(modules)


def test_ids_are_unique_and_sorted():
    ids = [spec.id for spec in list_models()]
    assert ids == sorted(set(ids))
    assert {"sd15", "sdxl", "flux", "flux_schnell", "flex1"} <= set(ids)
    assert [get_model(model) for model in ids] == list(list_models())


@pytest.mark.parametrize(
    "model", ["", "SD15", "sd15 ", "flux.1", "_tiny", "stable_diffusion", None]
)
def test_an_unknown_id_lists_all(model):
    with pytest.raises(UnknownModelError) as refusal:
        get_model(model)
    allowed = str(refusal.value).rsplit("allowed: ", 1)[1]
    assert allowed.split(", ") == [spec.id for spec in list_models()]


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_a_spec_fits_its_own_tiny_model(load, spec):
    model = load(spec.id)
    assert set(model.modules) == set(spec.components)
    assert {component for _, component in spec.lora.prefixes} <= set(spec.components)
    assert set(spec.clip_tokenizers) <= set(model.tokenizers)
    config = model.modules["vae"].config
    channels = config.z_dim if "z_dim" in config else config.latent_channels
    assert channels == spec.latent_channels
    assert len(set(spec.samplers)) == len(spec.samplers)
