"""Adapters at work on a model: merged into its weights or live beside its layers.

Both follow the trainer's arithmetic to the bit. The base comes back bit for bit, because merged
weights are restored from copies and never by subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .bind import BoundLayer


@dataclass(frozen=True)
class Applied:
    """One adapter as it is to act. digest identifies its file's content."""

    digest: str
    layers: tuple[BoundLayer, ...]
    multiplier: float
    live: bool

    @property
    def key(self) -> tuple[str, float, bool]:
        return (self.digest, self.multiplier, self.live)


class AdapterState:
    """What is applied to one loaded model right now.

    device: where merging is computed; matrix products round differently elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._applied: tuple[Applied, ...] = ()
        self._pristine: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def keys(self) -> tuple[tuple[str, float, bool], ...]:
        """(digest, multiplier, live) of what is applied, in order."""
        return tuple(adapter.key for adapter in self._applied)

    def switch(self, adapters: Sequence[Applied]) -> None:
        """Makes exactly these adapters act, in this order; nothing is done if they already do.

        If anything fails, the base is restored and nothing is applied.
        """
        if tuple(adapter.key for adapter in adapters) == self.keys:
            return
        try:
            self._switch(adapters)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Removes every adapter; the base weights are what was loaded, bit for bit."""
        self._switch(())

    @torch.no_grad()
    def _switch(self, adapters: Sequence[Applied]) -> None:
        self._applied = ()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        merges = _merges(adapters)
        for path in self._pristine.keys() - merges.keys():
            module, weight = self._pristine.pop(path)
            _weight(module).copy_(weight)
        for path, layers in merges.items():
            self._merge(path, layers)
        self._hooks = [
            bound.module.register_forward_hook(LiveLayer(bound, adapter.multiplier))
            for adapter in adapters
            if adapter.live and adapter.multiplier != 0
            for bound in adapter.layers
        ]
        self._applied = tuple(adapters)

    def _merge(self, path: str, layers: Sequence[tuple[BoundLayer, float]]) -> None:
        module = layers[0][0].module
        weight = _weight(module)
        if path not in self._pristine:
            self._pristine[path] = (module, weight.detach().to("cpu", copy=True))
        merged = self._pristine[path][1].to(self._device)
        for bound, multiplier in layers:
            merged = merged_weight(merged, bound, multiplier)
        weight.copy_(merged)


def _merges(adapters: Sequence[Applied]) -> dict[str, list[tuple[BoundLayer, float]]]:
    # module path -> what is merged into it, in order. A zero delta leaves the weight as it is.
    merges: dict[str, list[tuple[BoundLayer, float]]] = {}
    for adapter in adapters:
        if adapter.live or adapter.multiplier == 0:
            continue
        for bound in adapter.layers:
            if not bound.layer.is_zero:
                merges.setdefault(bound.path, []).append((bound, adapter.multiplier))
    return merges


def merged_weight(weight: torch.Tensor, bound: BoundLayer, multiplier: float) -> torch.Tensor:
    """The weight with the layer's delta added in fp32 and rounded once to the weight's dtype.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/network_mixins.py::ToolkitModuleMixin.merge_in
    """
    down = bound.layer.down.to(weight.device, torch.float32)
    up = bound.layer.up.to(weight.device, torch.float32)
    if weight.dim() == 2:
        delta = up @ down
    elif down.shape[2:] == (1, 1):
        delta = (up[:, :, 0, 0] @ down[:, :, 0, 0])[:, :, None, None]
    else:
        delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
    return (weight.float() + multiplier * delta * bound.scale).to(weight.dtype)


class LiveLayer:
    """A LoRA layer computed beside its module in fp32, rounded once, added in the base dtype.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/network_mixins.py::ToolkitModuleMixin.forward
    """

    def __init__(self, bound: BoundLayer, multiplier: float) -> None:
        self.down = bound.layer.down.float()
        self.up = bound.layer.up.float()
        self.scale = torch.tensor(bound.scale)
        self.multiplier = torch.tensor((multiplier,))

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        x = inputs[0].float()
        self._follow(x.device)
        if isinstance(module, torch.nn.Conv2d):
            hidden = torch.nn.functional.conv2d(
                x, self.down, None, module.stride, module.padding
            )
            delta = torch.nn.functional.conv2d(hidden, self.up)
        else:
            delta = torch.nn.functional.linear(torch.nn.functional.linear(x, self.down), self.up)
        return output + (delta * self.scale * self.multiplier).to(output.dtype)

    def _follow(self, device: torch.device) -> None:
        if self.down.device != device:
            for name in ("down", "up", "scale", "multiplier"):
                setattr(self, name, getattr(self, name).to(device))


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
