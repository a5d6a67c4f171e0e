"""LoRA files the trainer wrote fit their own model completely, and no other one."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.bind import bind, check_layout, match
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.adapters.report import describe, summary
from ai_toolkit_inference.core.errors import AdapterError

MODELS = (
    "sd15",
    "sdxl",
    "flux",
    "flux_schnell",
    "flex1",
    "flex2",
    "flux_kontext",
    "lumina2",
    "qwen_image",
    "zimage",
    "hidream",
    "hidream_e1",
    "omnigen2",
    "chroma",
    "flux2",
)
VERSIONS = ("0.7.19", "0.12.26")
PAIRS = list(product(MODELS, MODELS))
SAME_LAYERS = {
    name: names
    for names in (("flux", "flux_schnell"), ("flex1", "flex2"), ("hidream", "hidream_e1"))
    for name in names
} | {"chroma": ("chroma", "flux", "flux_schnell")}  # FLUX.1 without its modulation
FLUX = {"flux", "flux_schnell", "flex1", "flex2", "flux_kontext", "chroma"}
HIDREAM = {"hidream", "hidream_e1"}
# so that a file for their tiny weights looks like none
TOLD_BY_WIDTH = ("lumina2", "zimage", "omnigen2", "chroma", "flux2")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_file_binds_every_layer_to_a_module_of_its_own(trained_lora, load, model, version):
    path = trained_lora(model, version)
    layers = bind(read_adapter(path), get_model(model), load(model).modules)
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
    assert len(layers) == sum("lora_down" in key or "lora_A" in key for key in keys) > 10
    assert len({id(layer.module) for layer in layers}) == len(layers)
    components = {layer.path.split(".")[0] for layer in layers}
    encoders = {"sd15": 1, "sdxl": 2, "flux": 1, "flex2": 1, "flux_kontext": 1}.get(model, 0)
    assert len(components) == 1 + encoders


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("file", "model"), PAIRS)
def test_a_file_fits_no_other_model(trained_lora, load, file, model, version):
    adapter, modules = read_adapter(trained_lora(file, version)), load(model).modules
    binding = match(adapter, get_model(model), modules)
    if model in SAME_LAYERS.get(file, {file}):
        assert binding.complete
        return
    with pytest.raises(AdapterError) as refusal:
        bind(adapter, get_model(model), modules)
    told = str(refusal.value)
    assert f"does not fit {model}" in told
    total = len(adapter.layers)
    for names, words in (
        (binding.unbound, "name no module"),
        (binding.mismatched, "another shape"),
    ):
        assert bool(re.search(rf" {len(names)} of {total} ", told)) == bool(names)
        assert (words in told) == bool(names)
        assert all(name in told for name in names[:3])
        assert not any(name in told for name in names[3:])
    assert repr(adapter.metadata["ss_base_model_version"]) in told


@pytest.mark.parametrize(
    ("file", "model"), [(file, model) for file, model in PAIRS if file not in TOLD_BY_WIDTH]
)
def test_a_file_of_another_family_is_refused_without_weights(trained_lora, file, model):
    adapter, spec = read_adapter(trained_lora(file)), get_model(model)
    if file == model or {file, model} <= FLUX or {file, model} <= HIDREAM:
        check_layout(adapter, spec)
    else:
        with pytest.raises(AdapterError, match=f"does not fit {model}: [1-9][0-9]* of "):
            check_layout(adapter, spec)


def change(path, tmp_path, edit):
    """A copy of a LoRA file with its tensors edited."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    edit(tensors)
    copy = tmp_path / "changed.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, copy, metadata)
    return copy


def first(tensors, ending, kernel=None):
    return next(
        key
        for key, value in tensors.items()
        if key.endswith(ending) and (kernel is None or value.shape[2:] == kernel)
    )


NARROW = {
    "down of a linear layer": ("lora_down.weight", (), lambda x: x[:, :-1]),
    "up of a linear layer": ("lora_up.weight", (), lambda x: x[:-1]),
    "channels of a convolution": ("lora_down.weight", (3, 3), lambda x: x[:, :-1]),
    "kernel of a convolution": ("lora_down.weight", (3, 3), lambda x: x[:, :, :1, :1]),
    "dimensions of a down": ("lora_down.weight", (), lambda x: x[:, :, None, None]),
    "dimensions of an up": ("lora_up.weight", (), lambda x: x[:, :, None, None]),
    "dimensions of a convolution's up": ("lora_up.weight", (1, 1), lambda x: x[:, :, 0, 0]),
    "kernel of an up": ("lora_up.weight", (1, 1), lambda x: x.expand(-1, -1, 3, 3)),
}


@pytest.mark.parametrize("case", NARROW)
def test_one_layer_of_another_shape_is_refused(trained_lora, load, tmp_path, case):
    ending, kernel, cut = NARROW[case]
    named = []

    def edit(tensors):
        key = first(tensors, ending, kernel)
        named.append(key.removesuffix(f".{ending}"))
        tensors[key] = cut(tensors[key])

    adapter = read_adapter(change(trained_lora("sd15"), tmp_path, edit))
    with pytest.raises(AdapterError, match=rf"1 of \d+ have another shape \({named[0]} "):
        bind(adapter, get_model("sd15"), load("sd15").modules)


def test_one_layer_of_another_name_is_refused(trained_lora, load, tmp_path):
    def edit(tensors):
        for ending in ("lora_down.weight", "lora_up.weight", "alpha"):
            tensors[f"lora_unet_new_layer.{ending}"] = tensors[first(tensors, ending)].clone()

    adapter = read_adapter(change(trained_lora("sd15"), tmp_path, edit))
    check_layout(adapter, get_model("sd15"))
    with pytest.raises(AdapterError, match=r"1 of \d+ layers name no module .*new_layer"):
        bind(adapter, get_model("sd15"), load("sd15").modules)


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (2.0, 0.5), (8.0, 2.0), (-4.0, -1.0)]
)
def test_alpha_over_rank_is_the_scale(trained_lora, load, tmp_path, alpha, scale):
    def edit(tensors):
        for key in [key for key in tensors if key.endswith(".alpha")]:
            del tensors[key]
            if alpha is not None:
                tensors[key] = torch.tensor(alpha)
        for key, value in tensors.items():
            if "lora_down" in key:
                tensors[key] = value[:1].repeat_interleave(4, 0)
            elif "lora_up" in key:
                tensors[key] = value[:, :1].repeat_interleave(4, 1)

    adapter = read_adapter(change(trained_lora("sd15"), tmp_path, edit))
    layers = bind(adapter, get_model("sd15"), load("sd15").modules)
    assert {bound.layer.scale for bound in layers} == {scale}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("model", MODELS)
def test_the_report_says_what_the_file_says(trained_lora, model, version):
    adapter = read_adapter(trained_lora(model, version))
    report = summary(adapter)
    assert report["trainer_version"] == version
    unnamed = (model, version) == ("flex2", "0.7.19")
    assert report["base_model"] == ("unknown" if unnamed else get_model(model).lora.base_model)
    assert report["format"] == ("kohya" if model in ("sd15", "sdxl") else "peft")
    assert report["effective"]
    text = describe(adapter, "mine")
    assert re.match(rf"mine: {report['format']} LoRA, {len(adapter.layers)} layers, rank ", text)
    assert "changes nothing" not in text


def test_an_untrained_file_is_said_to_change_nothing(trained_lora, tmp_path):
    def edit(tensors):
        for key in tensors:
            if "lora_up" in key:
                tensors[key] = torch.zeros_like(tensors[key])

    adapter = read_adapter(change(trained_lora("sd15"), tmp_path, edit))
    assert not adapter.effective
    assert "changes nothing" in describe(adapter, "mine")
