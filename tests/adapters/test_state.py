"""Whatever is applied and removed, in whatever order, the base comes back bit for bit."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.lora import LoraLayer
from ai_toolkit_inference.adapters.originals import StoredWeights
from ai_toolkit_inference.core.errors import AdapterError
from ai_toolkit_inference.core.versions import PROFILES, Profile

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ADAPTERS = 6  # to choose from, each with other kinds on other modules
OPERATIONS = 1000


class Network(torch.nn.Module):
    """One module of every class that adapters reach, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.group = torch.nn.GroupNorm(2, 8)
        self.mix = torch.nn.Conv2d(8, 8, 1)
        self.table = torch.nn.Embedding(5, 6)
        self.wide = torch.nn.Linear(6, 8)
        self.length = torch.nn.LayerNorm(8)
        self.narrow = torch.nn.Linear(8, 4, bias=False)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(self.group(self.conv(x))) + self.table(torch.arange(5))
        return self.narrow(self.length(self.wide(x))) + self.shift


KINDS = {
    "conv": ("lora", "lokr", "lokr factored", "fullrank", "diff"),
    "group": ("diff", "diff without bias"),
    "mix": ("lora", "lokr", "lokr factored", "fullrank", "diff"),
    "table": ("diff without bias",),
    "wide": ("lora", "dora", "lokr", "lokr factored", "fullrank", "diff"),
    "length": ("diff", "diff without bias"),
    "narrow": ("lora", "dora", "lokr", "lokr factored", "fullrank", "diff without bias"),
}


def network(dtype: torch.dtype) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype).requires_grad_(False)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over every bit of the parameters and buffers."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def answer(module: torch.nn.Module) -> bytes:
    dtype = next(module.parameters()).dtype
    x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    return module(x).float().numpy().tobytes()


def hooked(module: torch.nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if "forward" in part.__dict__]


class Broken(LoraLayer):
    """Fails when it is its turn, with what its alpha stands for."""

    ERRORS = (RuntimeError, KeyboardInterrupt, AdapterError)

    def _fail(self, *given: Any) -> Any:
        if given:
            given[-1].zero_()  # half of the weight may be written already
        raise self.ERRORS[int(self.alpha or 0)]("broken")

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        yield "weight", self._fail

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> Any:
        self._fail()


class Run:
    """A network and its state under random operations."""

    def __init__(self, draw_layer, dtype: str, folder: Path | None, seed: int) -> None:
        self.model, self.rng = network(DTYPES[dtype]), random.Random(seed)
        if folder is not None:
            save_file(self.model.state_dict(), folder / "model.safetensors")
        self.state = AdapterState(CPU, StoredWeights({"unet": folder} if folder else {}))
        self.adapters = [self._adapter(draw_layer, number) for number in range(ADAPTERS)]
        self.loaded, self.plain = fingerprint(self.model), answer(self.model)
        self.current: list[Applied] = []
        self.seen: dict[object, object] = {}
        self.failures = 0

    def _adapter(self, draw_layer, number: int) -> Applied:
        # an odd one has no DoRA, so that it can be merged
        layers = []
        for place, name in enumerate(KINDS):
            kinds = [kind for kind in KINDS[name] if number % 2 == 0 or kind != "dora"]
            if self.rng.random() < 0.75:
                module = getattr(self.model, name)
                layer = draw_layer(self.rng.choice(kinds), module, 100 * number + place)
                layers.append(BoundLayer(f"unet.{name}", module, replace(layer, name=name)))
        return Applied(str(number), tuple(layers), 1.0, False)

    def choose(self, number: int) -> Applied:
        adapter = self.adapters[number]
        mergeable = all(bound.layer.can_merge for bound in adapter.layers)
        return replace(
            adapter,
            multiplier=self.rng.choice((0.0, 0.5, 1.0, 1.0, -1.0)),
            live=not mergeable or self.rng.random() < 0.5,
            profile=self.rng.choice(PROFILES),
        )

    def stack(self) -> list[Applied]:
        numbers = self.rng.sample(range(ADAPTERS), self.rng.choice((1, 2, 2, 3)))
        return [self.choose(number) for number in numbers]

    def broken(self) -> list[Applied]:
        """A stack in which one adapter works in part and fails then."""
        adapters, at = self.stack(), self.rng.randrange(3) % ADAPTERS
        at = min(at, len(adapters) - 1)
        ones = torch.ones(2, 8), torch.ones(4, 2)
        bad = [
            LoraLayer("misfit", None, torch.ones(2, 7), torch.ones(9, 2)),
            *(Broken("broken", float(number), *ones) for number in range(len(Broken.ERRORS))),
        ]
        chosen = self.rng.choice(bad)
        live = adapters[at].live and isinstance(chosen, Broken)
        layers = [bound for bound in adapters[at].layers if live or bound.layer.can_merge]
        layers.insert(
            self.rng.randrange(len(layers) + 1),
            BoundLayer("unet.narrow", self.model.narrow, chosen),
        )
        adapters[at] = replace(
            adapters[at], digest="broken", layers=tuple(layers), multiplier=1.0, live=live
        )
        return adapters

    def check_bare(self) -> None:
        assert fingerprint(self.model) == self.loaded
        assert answer(self.model) == self.plain
        assert (self.state.keys, hooked(self.model)) == ((), [])

    def check_current(self) -> None:
        """What acted last acts still."""
        key = tuple(adapter.key for adapter in self.current)
        assert self.state.keys == key
        if self.current:
            assert self.seen[key] == (fingerprint(self.model), answer(self.model))
        else:
            self.check_bare()

    def switch(self, adapters: list[Applied]) -> None:
        """Switches; the same adapters always do the same, or are refused with nothing changed."""
        key = tuple(adapter.key for adapter in adapters)
        try:
            self.state.switch(adapters)
        except AdapterError as error:
            assert "put the LoKr first" in str(error)
            assert self.seen.setdefault(key, str(error)) == str(error)
            self.check_current()
            return
        result = (fingerprint(self.model), answer(self.model))
        assert self.seen.setdefault(key, result) == result
        assert self.state.keys == key
        self.current = adapters

    def fail(self) -> None:
        with pytest.raises((RuntimeError, KeyboardInterrupt, AdapterError)):
            self.state.switch(self.broken())
        self.check_current()
        self.failures += 1

    def fail_forward(self) -> None:
        """A forward that fails in the middle changes nothing either."""
        before = (fingerprint(self.model), answer(self.model))
        with pytest.raises((RuntimeError, IndexError)):
            self.model(torch.ones(1, 4, 5, 7).to(self.model.conv.weight.dtype))
        assert (fingerprint(self.model), answer(self.model)) == before

    def step(self) -> None:
        operation = self.rng.choice(
            ("switch", "switch", "switch", "clear", "fail", "drop", "reorder", "multiplier", "run")
        )
        if operation == "clear":
            self.state.clear()
            self.check_bare()
            self.current = []
        elif operation == "fail":
            self.fail()
        elif operation == "run":
            self.fail_forward()
        elif operation == "switch" or not self.current:
            self.switch(self.stack())
        elif operation == "drop":
            self.switch([x for x in self.current if self.rng.random() < 0.6])
        elif operation == "reorder":
            self.switch(self.rng.sample(self.current, len(self.current)))
        else:
            values = (0.0, 0.5, 1.0, -1.0)
            self.switch([replace(x, multiplier=self.rng.choice(values)) for x in self.current])


@pytest.mark.parametrize("base", ["file", "copies"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_operations_leave_no_trace(draw_layer, tmp_path, dtype, base):
    run = Run(draw_layer, dtype, tmp_path if base == "file" else None, seed=len(dtype + base))
    for _ in range(OPERATIONS):
        run.step()
    results = [result for result in run.seen.values() if isinstance(result, tuple)]
    assert (run.failures > 50, len(results) > 100) == (True, True)
    assert len({weights for weights, _ in results}) > 30  # they do act
    assert len({output for _, output in results}) > 60
    run.state.clear()
    run.check_bare()


@contextmanager
def interrupted(after: int) -> Iterator[None]:
    """Raises KeyboardInterrupt before the line `after` that runs in the adapters' own files."""
    left, before = after, sys.gettrace()

    def on_line(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return on_line

    def on_call(frame, event, _):
        ours = frame.f_code.co_filename.endswith(("apply.py", "originals.py", "layer.py"))
        return on_line if ours and not frame.f_code.co_name.startswith("<") else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def interrupts(act: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Runs `act`, which may fail at its end, once for each of its lines, interrupted there."""
    for line in range(1, 10_000):
        prepare()
        try:
            with interrupted(line):
                act()
        except KeyboardInterrupt:
            yield line
        except RuntimeError:
            return
        else:
            return


@pytest.mark.parametrize("base", ["file", "copies"])
def test_an_interrupt_at_any_line_loses_nothing(draw_layer, tmp_path, base):
    """Neither in a switch nor in the restoring itself: the next switch puts all of it right."""
    run = Run(draw_layer, "bf16", tmp_path if base == "file" else None, seed=1)
    one, two = run.adapters[1], replace(run.adapters[2], live=True)
    mixed, merged = [one, two], [replace(run.adapters[3], multiplier=0.5)]
    faded = [one, replace(two, multiplier=0.5)]
    run.switch(mixed)
    both = run.seen[run.state.keys]
    last = Broken("broken", 0.0, torch.ones(2, 8), torch.ones(4, 2))  # its restoring is interrupted
    layers = (replace(one.layers[-1], layer=last),)
    broken = [replace(one, layers=one.layers[:-1]), Applied("broken", layers, 1.0, False)]

    lines = 0
    for start, end in (([], mixed), (mixed, merged), (mixed, faded), (mixed, []), (mixed, broken)):
        for _ in interrupts(lambda end=end: run.state.switch(end), lambda s=start: run.switch(s)):
            lines += 1
            if lines % 2:
                run.state.switch([])
                run.check_bare()
            else:
                run.switch(mixed)
                assert run.seen[run.state.keys] == both
    for _ in interrupts(run.state.clear, lambda: run.switch(mixed)):
        lines += 1
        run.state.switch([])
        run.check_bare()
    assert lines > 300


def test_the_same_adapters_again_do_nothing(bound, applied):
    """Not even a write to the weights, which would wait for a GPU."""
    model = network(torch.float32)
    state = AdapterState(CPU)
    adapters = [applied([bound(model.wide, path="unet.wide")], 0.5)]
    state.switch(adapters)
    versions = [weight._version for weight in model.parameters()]
    state.switch(adapters)
    assert [weight._version for weight in model.parameters()] == versions


def test_removing_touches_only_what_was_merged(bound, applied):
    model = network(torch.float32)
    state = AdapterState(CPU)
    state.switch([applied([bound(model.wide, path="unet.wide")])])
    others = [weight for weight in model.parameters() if weight is not model.wide.weight]
    versions = [weight._version for weight in others]
    state.clear()
    assert [weight._version for weight in others] == versions


def test_a_live_multiplier_is_changed_in_place(draw_layer, applied):
    """No weight is written and no layer is built anew."""
    model = network(torch.bfloat16)
    layers = [
        BoundLayer(f"unet.{name}", getattr(model, name), draw_layer(kind, getattr(model, name)))
        for name, kind in (("conv", "lora"), ("wide", "dora"), ("narrow", "lokr"))
    ]
    state, outputs = AdapterState(CPU), []
    state.switch([applied(layers, 1.0, live=True)])
    at_work = [bound.module.forward for bound in layers]
    for multiplier in (0.5, -1.0, 1.0):
        state.switch([applied(layers, multiplier, live=True)])
        assert [bound.module.forward for bound in layers] == at_work
        outputs.append(answer(model))
    assert len(set(outputs)) == 3
    state.switch([applied(layers, 0.0, live=True)])
    assert hooked(model) == []


def test_live_adapters_keep_no_copy_of_the_base(draw_layer, applied):
    model = network(torch.float32)
    layers = [
        BoundLayer(f"unet.{name}", getattr(model, name), draw_layer(kinds[0], getattr(model, name)))
        for name, kinds in KINDS.items()
    ]
    state = AdapterState(CPU)
    versions = [weight._version for weight in model.parameters()]
    state.switch([applied(layers, live=True)])
    answer(model)
    assert [weight._version for weight in model.parameters()] == versions
    assert not state._originals


def test_order_counts_where_rounding_does(bound, applied):
    model = network(torch.bfloat16)
    one, two = (
        applied([bound(model.wide, seed, path="unet.wide")], digest=str(seed)) for seed in (1, 2)
    )
    state, prints = AdapterState(CPU), []
    for adapters in ([one, two], [two, one], [one, two]):
        state.switch(adapters)
        prints.append(fingerprint(model))
    assert prints[0] == prints[2] != prints[1]
