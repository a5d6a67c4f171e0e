"""Samples of quantized bases: what is held how, what acts, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine
from ai_toolkit_inference.adapters.layer import LiveLayer
from ai_toolkit_inference.adapters.lokr import LokrLayer
from ai_toolkit_inference.adapters.lora import LiveLora, LoraLayer
from ai_toolkit_inference.core.errors import AdapterError, InvalidInputError
from ai_toolkit_inference.core.versions import PROFILES
from ai_toolkit_inference.engine.weights import tiny_lora
from ai_toolkit_inference.pipelines._registry import get_model
from ai_toolkit_inference.quantization.module import PackedLayer


@pytest.fixture
def base(ask: Callable[..., Any]) -> Callable[..., Any]:
    """(loaded model, engine) of ask's arguments."""

    def load(model: str, **fields: Any) -> tuple[Any, Engine]:
        engine = Engine("cpu")
        return engine.model(ask(model, dtype="bf16", **fields).recipe), engine

    return load


def packed(module: torch.nn.Module) -> dict[str, PackedLayer]:
    return {p: m for p, m in module.named_modules() if isinstance(m, PackedLayer)}


def test_the_parts_that_the_trainer_quantizes(base) -> None:
    model, _ = base("flux", quantize="qfloat8")
    counts = {name: len(packed(module)) for name, module in model.modules.items()}
    assert counts["transformer"] and counts["text_encoder_2"]
    assert counts["text_encoder"] == counts["vae"] == 0
    linear = [m for m in model.modules["transformer"].modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == counts["transformer"]


@pytest.mark.parametrize(("version", "kept"), [("0.7.19", False), ("0.12.26", True)])
def test_embedders_stay_since_a_version(base, ask, version: str, kept: bool) -> None:
    engine = Engine("cpu")
    recipe = replace(ask("zimage", quantize="qfloat8").recipe, trainer_version=version)
    transformer = engine.model(recipe).modules["transformer"]
    outside = [path for path in packed(transformer) if path.startswith(("t_embed", "cap_embed"))]
    assert bool(outside) is not kept


def test_both_experts_are_quantized(base) -> None:
    model, _ = base("wan22_14b_t2v", quantize="uint4", quantize_te="none")
    assert packed(model.modules["transformer"]) and packed(model.modules["transformer_2"])
    assert not packed(model.modules["text_encoder"])


def test_another_way_to_hold_weights_is_another_base(engine, ask) -> None:
    frames = []
    for fields in ({}, {"quantize": "qfloat8"}, {"quantize": "uint3"}, {}):
        request = ask("flux", dtype="bf16", **fields)
        result = engine.sample(request)
        assert engine.holds(request.recipe)
        assert result.info["quantize"] == fields.get("quantize", "none")
        assert bool(result.info["quantized_layers"]) == bool(fields)
        frames.append(result.frames)
    assert (frames[0] == frames[3]).all()
    assert len({picture.tobytes() for picture in frames}) == 3


def test_a_lora_acts_beside_quantized_layers(engine, ask) -> None:
    lora = tiny_lora(get_model("flux"))
    request = ask("flux", dtype="bf16", quantize="qfloat8", adapters=((lora, 1.0),))
    result = engine.sample(request)
    assert result.info["adapters"][0]["mode"] == "live"
    without = engine.sample(ask("flux", dtype="bf16", quantize="qfloat8"))
    assert (result.frames != without.frames).any()


def test_merging_into_quantized_weights_is_refused(engine, ask) -> None:
    lora = tiny_lora(get_model("flux"))
    request = ask("flux", quantize="qfloat8", adapters=((lora, 1.0),), mode="merged")
    with pytest.raises(AdapterError, match="would round the adapter away"):
        engine.plan(request)


def test_stable_diffusion_stops_merging(engine, ask) -> None:
    lora = tiny_lora(get_model("sd15"))
    result = engine.sample(ask("sd15", quantize="qfloat8", adapters=((lora, 1.0),)))
    assert result.info["quantized_layers"] == {}
    assert result.info["quantize"] == "none"
    assert result.info["adapters"][0]["mode"] == "live"


def test_a_recovery_adapter_belongs_to_the_base(engine, ask, trained_lora) -> None:
    file = trained_lora("zimage")
    request = ask("zimage", dtype="bf16", quantize=f"uint3|{file}", quantize_te="none")
    result = engine.sample(request)
    transformer = engine.model(request.recipe).modules["transformer"]
    layers = packed(transformer)
    assert 0 < len(layers) < len(list(transformer.modules()))
    assert all(isinstance(layer.forward, LiveLayer) for layer in layers.values())
    assert not any(path.startswith(("t_embed", "cap_embed")) for path in layers)
    assert result.info["quantize"] == f"uint3|{file}"
    again = engine.sample(request)
    assert (result.frames == again.frames).all()
    plain = engine.sample(ask("zimage", dtype="bf16", quantize="uint3", quantize_te="none"))
    assert (plain.frames != result.frames).any()


def test_a_recovery_adapter_that_is_not_there(engine, ask, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no LoRA at"):
        engine.sample(ask("zimage", quantize=f"uint3|{tmp_path / 'none.safetensors'}"))


def test_a_recovery_adapter_is_a_plain_lora(engine, ask, trained_lora, tmp_path: Path) -> None:
    # the trainer makes a network without layers of any other, and fails
    tensors, lokr = load_file(trained_lora("zimage")), {}
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        path = key.removesuffix(".lora_A.weight")
        lokr[f"{path}.lokr_w1"] = torch.ones(1, 1)
        lokr[f"{path}.lokr_w2"] = (tensors[f"{path}.lora_B.weight"] @ tensors[key]).float()
    file = tmp_path / "lokr.safetensors"
    save_file(lokr, file)
    with pytest.raises(AdapterError, match=r"is a lokr layer; the trainer fails at .* use one"):
        engine.sample(ask("zimage", quantize=f"uint3|{file}"))


@pytest.mark.parametrize("of_base", [True, False])
def test_a_live_lokr_of_the_old_kind_takes_the_place_of_what_the_base_has(of_base: bool) -> None:
    # as in the trainer, where it never calls what is below it
    module = torch.nn.Linear(4, 4, bias=False)
    factors = torch.eye(2), torch.ones(2, 2)
    below = LiveLora(LoraLayer("a", None, torch.ones(1, 4), torch.ones(4, 1)), module, 1.0)
    below.of_base = of_base
    below.install()
    lokr = LokrLayer("b", None, *factors)
    if not of_base:
        with pytest.raises(AdapterError, match="would be lost"):
            lokr.live(module, 1.0, PROFILES[0])
        return
    lokr.live(module, 1.0, PROFILES[0]).install()
    x = torch.randn(1, 4)
    assert torch.equal(module(x), x @ (module.weight + torch.kron(*factors)).T)


def test_pictures_are_near_those_in_full_precision(engine, ask) -> None:
    full = engine.sample(ask("flux", dtype="bf16")).frames.astype(int)
    near = engine.sample(ask("flux", dtype="bf16", quantize="qfloat8")).frames.astype(int)
    assert 0 < np.abs(full - near).mean() < 10
