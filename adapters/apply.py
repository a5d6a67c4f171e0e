"""Adapters at work on a model: merged into its weights or live beside its layers.

The base comes back bit for bit, because merged weights are restored from what was loaded and
never by subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import AdapterError
from ..core.versions import LATEST, Profile
from .bind import BoundLayer
from .layer import LiveLayer, is_quantized
from .originals import Original, StoredWeights


@dataclass(frozen=True)
class Applied:
    """One adapter as it is to act.

    digest identifies its file's content. profile: whose arithmetic live layers follow.
    """

    digest: str
    layers: tuple[BoundLayer, ...]
    multiplier: float
    live: bool
    profile: Profile = LATEST

    @property
    def kept(self) -> tuple[Any, ...]:
        """What stays the same if only the multiplier changes."""
        return (self.digest, self.live, self.profile, *(layer.path for layer in self.layers))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for adapters that do the same to the same model."""
        return (*self.kept, self.multiplier)


Target = tuple[str, str]  # module path, parameter
Merge = tuple[BoundLayer, Any, Applied]  # layer, its function, whose it is


class AdapterState:
    """What is applied to one loaded model right now.

    device: where merging is computed; matrix products round differently elsewhere.
    stored: the checkpoint the model came from, for restoring its weights without copies.
    """

    def __init__(self, device: torch.device, stored: StoredWeights | None = None) -> None:
        self._device = device
        self._stored = stored or StoredWeights({})
        self._applied: tuple[Applied, ...] = ()
        self._settled = True  # not while changing, nor after an interrupt of it
        self._originals: dict[Target, Original] = {}
        self._merged: dict[Target, tuple[Any, ...]] = {}  # what is in it, once it is complete
        self._live: list[tuple[LiveLayer, int]] = []  # with the index of their adapter

    @property
    def keys(self) -> tuple[tuple[Any, ...], ...]:
        """Keys of what is applied, in order."""
        return tuple(adapter.key for adapter in self._applied)

    def switch(self, adapters: Sequence[Applied]) -> None:
        """Makes exactly these adapters act, in this order; nothing is done if they already do.

        If anything fails, what acted before acts again; if that fails too, nothing does.
        """
        before = self._applied if self._settled else ()
        if self._settled and tuple(adapter.key for adapter in adapters) == self.keys:
            return
        try:
            if not (self._settled and self._only_live_multipliers_change(adapters)):
                self._switch(adapters)
        except BaseException:
            self._revert(before)
            raise

    def clear(self) -> None:
        """Removes every adapter; the base weights are what was loaded, bit for bit."""
        self._switch(())

    def _revert(self, before: Sequence[Applied]) -> None:
        try:
            self._switch(before)
        except BaseException:
            self.clear()
            raise

    def _only_live_multipliers_change(self, adapters: Sequence[Applied]) -> bool:
        if [new.kept for new in adapters] != [old.kept for old in self._applied]:
            return False
        for new, old in zip(adapters, self._applied, strict=True):
            changed = new.multiplier != old.multiplier
            if changed and not (new.live and new.multiplier and old.multiplier):
                return False
        self._settled = False
        for layer, index in self._live:
            layer.set_multiplier(adapters[index].multiplier)
        self._applied, self._settled = tuple(adapters), True
        return True

    @torch.no_grad()
    def _switch(self, adapters: Sequence[Applied]) -> None:
        self._applied, self._settled = (), False
        while self._live:
            self._live[-1][0].remove()
            self._live.pop()  # not before: an interrupt must not leave it in place
        merges = _merges(adapters)
        for target in self._originals.keys() - merges.keys():
            self._merged.pop(target, None)
            self._originals[target].restore()
            del self._originals[target]  # not before: an interrupt must not lose it
        for target, layers in merges.items():
            self._merge(target, layers)
        for index, adapter in enumerate(adapters):
            if adapter.live and adapter.multiplier != 0:
                for bound in adapter.layers:
                    self._hook(bound, adapter, index)
        self._applied, self._settled = tuple(adapters), True

    def _hook(self, bound: BoundLayer, adapter: Applied, index: int) -> None:
        layer = bound.layer.live(bound.module, adapter.multiplier, adapter.profile)
        self._live.append((layer, index))
        layer.install()

    def _merge(self, target: Target, layers: Sequence[Merge]) -> None:
        content = tuple((by.digest, by.multiplier, bound.layer.name) for bound, _, by in layers)
        if self._merged.get(target) == content:
            return
        self._merged.pop(target, None)
        if target not in self._originals:
            self._originals[target] = self._original(target, layers[0][0].module)
        original = self._originals[target]
        base = original.read().to(self._device)
        for _, merge, adapter in layers:
            merge(base, adapter.multiplier, original.parameter)
            base = original.parameter.to(self._device)
        self._merged[target] = content

    def _original(self, target: Target, module: torch.nn.Module) -> Original:
        path, name = target
        if is_quantized(getattr(module, name)):
            raise AdapterError(
                f"{path} is quantized, and merging into it would round the adapter away; the "
                "trainer does not: use mode as_trainer or live"
            )
        return self._stored.original(path, module, name)


def _merges(adapters: Sequence[Applied]) -> dict[Target, list[Merge]]:
    # what is merged into each parameter, in order. A zero delta leaves the weight as it is.
    merges: dict[Target, list[Merge]] = {}
    for adapter in adapters:
        if adapter.live or adapter.multiplier == 0:
            continue
        for bound in adapter.layers:
            for name, merge in _acting(bound):
                merges.setdefault((bound.path, name), []).append((bound, merge, adapter))
    return merges


def _acting(bound: BoundLayer) -> Iterator[tuple[str, Any]]:
    if not bound.layer.is_zero:
        yield from bound.layer.merges()
