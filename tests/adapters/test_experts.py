"""Files for models with two experts reach the one that they are for, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from named import (
    EXPERTS,
    lora,
    model,
    original,
    paths,
    trained,
    two_experts,
    wan,
)

from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import bind, match
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import AdapterError


@pytest.fixture
def experts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {name: wan().eval().requires_grad_(False) for name in EXPERTS}


def changed(experts: Mapping[str, Any], bound: Any) -> set[str]:
    """The weights that an adapter changes, restored again."""
    before = {
        f"{name}.{key}": weight.clone()
        for name, module in experts.items()
        for key, weight in module.state_dict().items()
    }
    state = AdapterState(torch.device("cpu"))
    state.switch([Applied("a", bound, 1.0, False)])
    after = {
        f"{name}.{key}": weight.clone()
        for name, module in experts.items()
        for key, weight in module.state_dict().items()
    }
    state.clear()
    return {key for key in before if not torch.equal(before[key], after[key])}


def expert_names(start: str, separator: str, spelled: bool) -> dict[str, str]:
    return {
        start + (original("wan", path) if spelled else path).replace(".", separator): path
        for path in trained(model("wan"))
        if "blocks" in path
    }


STARTS = [
    ("diffusion_model.", ".", True),
    ("diffusion_model.", ".", False),
    ("transformer.", ".", False),
    ("", ".", True),
    ("lora_unet_", "_", True),
    ("lycoris_", "_", False),
]


@pytest.mark.parametrize(("start", "separator", "spelled"), STARTS)
@pytest.mark.parametrize(("side", "expert"), [("high", "transformer"), ("low", "transformer_2")])
def test_a_file_of_one_side_reaches_that_expert_only(
    write_layers, tmp_path, experts, side, expert, start, separator, spelled
):
    names = expert_names(start, separator, spelled)
    layers = {n: lora(1, experts["transformer"].get_submodule(p)) for n, p in names.items()}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    bound = bind(adapter, two_experts(), experts, side)
    assert changed(experts, bound) == {f"{expert}.{path}.weight" for path in names.values()}


COMBINED = [
    ("diffusion_model.transformer_{}.", "."),
    ("transformer_{}.", "."),
    ("lora_unet_transformer_{}_", "_"),
    ("lycoris_transformer_{}_", "_"),
    ("lora_transformer_transformer_{}_", "_"),
]


@pytest.mark.parametrize("side", ["high", ""])
@pytest.mark.parametrize(("start", "separator"), COMBINED)
def test_a_file_of_both_experts_reaches_both(
    write_layers, tmp_path, experts, start, separator, side
):
    layers, expected = {}, {}
    for number, expert in enumerate(EXPERTS, 1):
        for name, path in expert_names(start.format(number), separator, True).items():
            layers[name] = lora(number, experts[expert].get_submodule(path))
            expected[name] = f"{expert}.{path}"
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    assert paths(match(adapter, two_experts(), experts, side)) == expected
    bound = bind(adapter, two_experts(), experts, side)
    assert changed(experts, bound) == {f"{path}.weight" for path in expected.values()}


@pytest.mark.parametrize(("number", "expert"), [(1, "transformer"), (2, "transformer_2")])
def test_a_combined_file_may_lack_a_side(write_layers, tmp_path, experts, number, expert):
    names = expert_names(f"diffusion_model.transformer_{number}.", ".", True)
    layers = {n: lora(1, experts[expert].get_submodule(p)) for n, p in names.items()}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    bound = bind(adapter, two_experts(), experts, "high")
    assert {layer.path.partition(".")[0] for layer in bound} == {expert}


def test_a_pair_swapped_is_another_model(write_layers, tmp_path, experts):
    names, prints = expert_names("diffusion_model.", ".", True), []
    adapters = []
    for seed in (1, 2):
        layers = {n: lora(seed, experts["transformer"].get_submodule(p)) for n, p in names.items()}
        adapters.append(read_adapter(write_layers(tmp_path / f"{seed}.safetensors", layers)))
    state = AdapterState(torch.device("cpu"))
    for sides in (("high", "low"), ("low", "high"), ("high", "low")):
        state.switch(
            [
                Applied(adapter.digest, bind(adapter, two_experts(), experts, side), 1.0, False)
                for adapter, side in zip(adapters, sides, strict=True)
            ]
        )
        weights = [w for name in EXPERTS for w in experts[name].state_dict().values()]
        prints.append(b"".join(weight.numpy().tobytes() for weight in weights))
    assert prints[0] == prints[2] != prints[1]


def test_without_a_side_a_plain_file_fits_no_expert(write_layers, tmp_path, experts):
    names = expert_names("diffusion_model.", ".", True)
    layers = {n: lora(1, experts["transformer"].get_submodule(p)) for n, p in names.items()}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    with pytest.raises(AdapterError, match=f"{len(names)} of {len(names)} layers name no module"):
        bind(adapter, two_experts(), experts)
