"""Whatever is applied and removed, in whatever order, the base comes back bit for bit."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.read import LoraLayer

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 1),
        torch.nn.Linear(6, 6),
        torch.nn.Linear(6, 4, bias=False),
    )
    return layers.to(dtype).requires_grad_(False)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over every bit of the weights."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def answer(module: torch.nn.Module) -> str:
    dtype = next(module.parameters()).dtype
    x = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    return hashlib.sha256(module(x).float().numpy().tobytes()).hexdigest()


def adapter(model, bound, number: int, multiplier: float, live: bool, broken: bool) -> Applied:
    """Adapter `number` covers all layers but one; the last layer of a broken one fits nothing."""
    modules = [module for index, module in enumerate(model) if index != number]
    layers = [
        bound(module, seed=10 * number + index, path=f"unet.{list(model).index(module)}")
        for index, module in enumerate(modules)
    ]
    if broken:
        # merged it fails on its shape, live on a module that takes no hook
        misfit = LoraLayer("misfit", torch.ones(2, 7), torch.ones(9, 2), None)
        module = model[2] if not live else object()
        layers.append(BoundLayer("unet.2", module, misfit, 1.0))
    return Applied(f"{number}{broken}", tuple(layers), multiplier, live)


def random_adapters(model, bound, rng: random.Random) -> tuple[list[Applied], bool]:
    numbers = rng.sample(range(3), rng.choice((1, 1, 2, 3)))
    broken_one = rng.choice(numbers) if rng.random() < 0.25 else None
    chosen = [
        adapter(
            model,
            bound,
            number,
            1.0 if number == broken_one else rng.choice((0.0, 0.5, 1.0, -1.0)),
            rng.random() < 0.5,
            number == broken_one,
        )
        for number in numbers
    ]
    return chosen, broken_one is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_random_switches_leave_no_trace(bound, dtype, seed):
    model, rng = network(DTYPES[dtype]), random.Random(seed)
    state, seen = AdapterState(CPU), {}
    loaded, plain = fingerprint(model), answer(model)
    for _ in range(300):
        if rng.random() < 0.2:
            state.clear()
            assert (fingerprint(model), answer(model), state.keys) == (loaded, plain, ())
            continue
        adapters, broken = random_adapters(model, bound, rng)
        if broken:
            with pytest.raises((RuntimeError, AttributeError)):
                state.switch(adapters)
            assert (fingerprint(model), answer(model), state.keys) == (loaded, plain, ())
            continue
        state.switch(adapters)
        result = (fingerprint(model), answer(model))
        assert seen.setdefault(state.keys, result) == result
    assert len(seen) > 20
    assert len({answer for _, answer in seen.values()}) > 10
    state.clear()
    assert (fingerprint(model), answer(model)) == (loaded, plain)


def test_an_interrupt_between_two_layers_restores_the_base(bound):
    class Interrupting:
        is_zero = False

        @property
        def down(self):
            raise KeyboardInterrupt

    model = network(torch.float32)
    loaded, state = fingerprint(model), AdapterState(CPU)
    state.switch([adapter(model, bound, 0, 1.0, live=False, broken=False)])
    first = bound(model[2], path="unet.2")
    second = BoundLayer("unet.3", model[3], Interrupting(), 1.0)  # type: ignore
    for live in (False, True):
        with pytest.raises(KeyboardInterrupt):
            state.switch([Applied("x", (first, second), 1.0, live)])
        assert (fingerprint(model), state.keys) == (loaded, ())


def test_the_same_adapters_again_do_nothing(bound):
    """Not even a write to the weights, which would wait for a GPU."""
    model = network(torch.float32)
    state = AdapterState(CPU)
    adapters = [adapter(model, bound, 0, 0.5, live=False, broken=False)]
    state.switch(adapters)
    versions = [weight._version for weight in model.parameters()]
    state.switch(adapters)
    assert [weight._version for weight in model.parameters()] == versions


def test_removing_touches_only_what_was_merged(bound, applied):
    model = network(torch.float32)
    state = AdapterState(CPU)
    state.switch([applied([bound(model[2], path="unet.2")])])
    versions = [model[index].weight._version for index in (0, 1, 3)]
    state.clear()
    assert [model[index].weight._version for index in (0, 1, 3)] == versions


def test_order_counts_where_rounding_does(bound, applied):
    model = network(torch.bfloat16)
    one, two = (applied([bound(model[2], seed)], digest=str(seed)) for seed in (1, 2))
    state, prints = AdapterState(CPU), []
    for adapters in ([one, two], [two, one], [one, two]):
        state.switch(adapters)
        prints.append(fingerprint(model))
    assert prints[0] == prints[2] != prints[1]
