"""Every qtype against what the trainer made of the same layers, stored as digests."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import quantized_layers
import torch
from arithmetic import layer_arithmetic
from rows import GOLDENS, PROFILES

from ai_toolkit_inference.core.qtypes import NAMES
from ai_toolkit_inference.quantization.module import PackedLayer, PackedWeight, packed_layer
from ai_toolkit_inference.quantization.schemes import scheme_of

STORED = json.loads((GOLDENS / "quantized.json").read_text(encoding="utf-8"))
SLOW = ("orbitvq2",)  # its table of points takes a while to make
EIGHT_BITS = [name for name in NAMES if "8" in name and name != "uint8"]


@cache
def same_kernels(version: str, dtype: str) -> bool:
    """Whether products round here as where the digests were made."""
    kind = quantized_layers.DTYPES[dtype]
    return layer_arithmetic(kind) == STORED[version]["arithmetic"][dtype]


def quantized(qtype: str, dtype: str, name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The layer as the qtype holds it, and its input."""
    layer, x = quantized_layers.draw_layers()[name]
    kind, scheme = quantized_layers.DTYPES[dtype], scheme_of(qtype)
    layer = layer.to(kind)
    if scheme and isinstance(layer, scheme.kinds) and scheme.fits(layer.weight.shape):
        layer = packed_layer(layer, scheme, scheme.pack(layer.weight.detach()), False)
    return layer, x.to(kind)


def entries() -> list[Any]:
    found = []
    for version in PROFILES:
        for key, text in STORED[version]["results"].items():
            qtype, dtype = key.split("/")
            marks = [pytest.mark.slow] if qtype in SLOW else []
            found.append(pytest.param(version, qtype, dtype, text, marks=marks))
    return found


@pytest.mark.parametrize(("version", "qtype", "dtype", "text"), entries())
def test_layers_are_the_trainers(version: str, qtype: str, dtype: str, text: str) -> None:
    for entry in text.split():
        name, weight, output = entry.split(":")
        layer, x = quantized(qtype, dtype, name)
        assert isinstance(layer, PackedLayer) == (weight != "plain")
        got = layer(x)
        assert got.dtype == x.dtype
        if weight == "failed":  # the trainer has no kernel on a CPU
            continue
        if isinstance(layer, PackedLayer):
            assert quantized_layers.digest(layer.weight.dequantize()) == weight, entry
        if same_kernels(version, dtype):
            assert quantized_layers.digest(got) == output, entry


def test_every_qtype_was_measured() -> None:
    measured = {key.split("/")[0] for key in STORED[PROFILES[-1]]["results"]}
    assert measured == set(NAMES)


@pytest.mark.parametrize("qtype", [name for name in NAMES if name not in ("uint8", *SLOW)])
def test_less_memory_is_held(qtype: str) -> None:
    layer, _ = quantized(qtype, "bf16", "wide")
    held = sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
    full = layer.weight_shape.numel() * 2
    assert held < full * (0.52 if qtype in EIGHT_BITS else 0.9)
    assert not any(name == "weight" for name, _ in layer.named_parameters())


def test_code_that_asks_for_the_weight_gets_it() -> None:
    layer, x = quantized("qfloat8", "bf16", "plain")
    weight = layer.weight
    assert isinstance(weight, PackedWeight)
    assert (weight.shape, weight.dtype, weight.device.type) == ((96, 64), torch.bfloat16, "cpu")
    restored = weight.dequantize()
    assert type(restored) is torch.Tensor
    assert torch.equal(weight + 0, restored)
    by_hand = torch.nn.functional.linear(x, weight, layer.bias)
    assert torch.equal(by_hand, torch.nn.functional.linear(x, restored, layer.bias))


@pytest.mark.parametrize("qtype", ["qfloat8", "float8", "uint4", "convrot8"])
def test_casting_a_model_leaves_packed_weights_alone(qtype: str) -> None:
    layer, _ = quantized(qtype, "bf16", "plain")
    before = layer.weight.dequantize()
    assert torch.equal(layer.to(torch.float32).weight.dequantize(), before)
