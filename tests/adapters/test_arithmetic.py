"""Merged and live LoRA layers against the same sums done independently."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ai_toolkit_inference.adapters.apply import AdapterState

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODULES = {
    "linear": lambda: torch.nn.Linear(24, 40),
    "linear without bias": lambda: torch.nn.Linear(24, 40, bias=False),
    "conv 1x1": lambda: torch.nn.Conv2d(24, 16, 1),
    "conv 3x3": lambda: torch.nn.Conv2d(24, 16, 3, padding=1),
    "conv 3x3 stride 2": lambda: torch.nn.Conv2d(24, 16, 3, stride=2, padding=1),
    "conv 1x3": lambda: torch.nn.Conv2d(24, 16, (1, 3), padding=(0, 1)),
}


def build(kind: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(1)
    return MODULES[kind]().to(dtype).requires_grad_(False)


def inputs(module: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    shape = (2, 24, 9, 8) if isinstance(module, torch.nn.Conv2d) else (2, 5, 24)
    return (torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(2)) / 8).to(dtype)


def delta_of(layer) -> np.ndarray:
    """up @ down over the rank, in float64."""
    up, down = layer.up.double().numpy(), layer.down.double().numpy()
    return np.einsum("or,r...->o...", up.reshape(up.shape[:2]), down)


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODULES)
def test_merging_adds_in_fp32_and_rounds_once(bound, applied, kind, dtype, multiplier):
    module = build(kind, DTYPES[dtype])
    layer = bound(module, scale=0.25, exact=True)
    before = module.weight.float().numpy().copy()
    delta = (delta_of(layer.layer) * multiplier * 0.25).astype(np.float32)  # exact
    AdapterState(CPU).switch([applied([layer], multiplier)])
    assert torch.equal(module.weight, torch.from_numpy(before + delta).to(DTYPES[dtype]))


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODULES)
def test_live_layers_add_beside_the_module(bound, applied, kind, dtype, multiplier):
    module = build(kind, DTYPES[dtype])
    layer = bound(module, scale=0.25, exact=True)
    x = inputs(module, DTYPES[dtype])
    plain, weight = module(x), module.weight.clone()
    twin = build(kind, torch.float64)
    twin.weight.copy_(torch.from_numpy(delta_of(layer.layer)))
    if twin.bias is not None:
        twin.bias.zero_()
    delta = twin(x.double()) * multiplier * 0.25  # exact
    AdapterState(CPU).switch([applied([layer], multiplier, live=True)])
    assert torch.equal(module(x), plain + delta.to(DTYPES[dtype]))
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("kind", MODULES)
def test_live_and_merged_agree_within_rounding(bound, applied, kind):
    module = build(kind, torch.float32)
    layer, x = bound(module, scale=0.5), inputs(module, torch.float32)
    state, outputs = AdapterState(CPU), []
    for live in (True, False):
        state.switch([applied([layer], 0.7, live)])
        outputs.append(module(x))
    assert not torch.equal(*outputs)  # they are two ways indeed
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "rank"),
    [
        (320, 2560, 4),
        (2560, 320, 16),
        (3, 100_000, 4),
        (100_000, 3, 4),
        (1, 200_000, 2),
        (515, 515, 1),
        (515, 517, 33),
        (2, 65_537, 128),
    ],
)
@pytest.mark.parametrize(("multiplier", "scale"), [(1.0, 1.0), (0.6, 0.5)])
def test_large_weights_merge_to_the_same_bits(
    bound, applied, rows, columns, rank, dtype, multiplier, scale
):
    """Whatever pieces it is done in, it is the trainer's one product."""
    module = torch.nn.Linear(columns, rows, bias=False).to(DTYPES[dtype]).requires_grad_(False)
    layer = bound(module, rank=rank, scale=scale)
    delta = multiplier * (layer.layer.up @ layer.layer.down) * scale
    expected = (module.weight.float() + delta).to(DTYPES[dtype])
    AdapterState(CPU).switch([applied([layer], multiplier)])
    assert torch.equal(module.weight, expected)


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_small_weights_merge_to_the_same_bits(bound, applied, rank):
    wrong = []
    for rows in (1, 2, 5):
        for columns in (1, 3, 8):
            module = torch.nn.Linear(columns, rows, bias=False).requires_grad_(False)
            for seed in range(40):
                torch.nn.init.normal_(module.weight, std=0.1)
                layer = bound(module, seed, rank)
                expected = module.weight + layer.layer.up @ layer.layer.down
                AdapterState(CPU).switch([applied([layer], 1.0)])
                if not torch.equal(module.weight, expected):
                    wrong.append((rows, columns, seed))
    assert not wrong


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_a_multiplier_of_zero_changes_no_bit(bound, applied, kind, live):
    module = build(kind, torch.bfloat16)
    module.weight.view(torch.int16).flatten()[0] = -(2**15)  # -0.0, which 0.0 + -0.0 is not
    before, x = module.weight.clone(), inputs(module, torch.bfloat16)
    plain = module(x)
    AdapterState(CPU).switch([applied([bound(module)], 0.0, live)])
    assert torch.equal(module.weight.view(torch.int16), before.view(torch.int16))
    assert torch.equal(module(x), plain)


@pytest.mark.parametrize("half", ["up", "down"])
def test_an_untrained_layer_changes_no_bit(bound, applied, half):
    module = build("linear", torch.bfloat16)
    module.weight.view(torch.int16)[0, 0] = -(2**15)
    before = module.weight.clone()
    layer = bound(module)
    getattr(layer.layer, half).zero_()
    AdapterState(CPU).switch([applied([layer])])
    assert torch.equal(module.weight.view(torch.int16), before.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_adapters_stack_in_order_each_rounded(bound, applied, dtype):
    module = build("linear", DTYPES[dtype])
    layers = [bound(module, seed, exact=True) for seed in (0, 1)]
    expected = module.weight
    for layer, multiplier in zip(layers, (1.0, 0.5), strict=True):
        delta = torch.from_numpy(delta_of(layer.layer) * multiplier).float()
        expected = (expected.float() + delta).to(DTYPES[dtype])
    AdapterState(CPU).switch(
        [applied([layers[0]], 1.0, digest="a"), applied([layers[1]], 0.5, digest="b")]
    )
    assert torch.equal(module.weight, expected)
