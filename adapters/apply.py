"""Adapters at work on a model: merged into its weights or live beside its layers.

Both follow the trainer's arithmetic to the bit. The base comes back bit for bit, because merged
weights are restored from copies and never by subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from .bind import BoundLayer

FEWEST_ROWS = 16
CACHED = 1 << 17  # weights a CPU thread works on at once: half a megabyte in fp32


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
            module, weight = self._pristine[path]
            _weight(module).copy_(weight)
            del self._pristine[path]  # not before: an interrupt must not lose the copy
        for path, layers in merges.items():
            self._merge(path, layers)
        live = [adapter for adapter in adapters if adapter.live and adapter.multiplier != 0]
        for adapter in live:
            for bound in adapter.layers:
                layer = LiveLayer(bound, adapter.multiplier)
                self._hooks.append(bound.module.register_forward_hook(layer))
        self._applied = tuple(adapters)

    def _merge(self, path: str, layers: Sequence[tuple[BoundLayer, float]]) -> None:
        module = layers[0][0].module
        weight = _weight(module)
        if path not in self._pristine:
            self._pristine[path] = (module, weight.detach().to("cpu", copy=True))
        base = self._pristine[path][1].to(self._device)
        for bound, multiplier in layers:
            base = merge(base, bound, multiplier, out=weight).to(self._device)


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


def merge(
    weight: torch.Tensor, bound: BoundLayer, multiplier: float, out: torch.Tensor
) -> torch.Tensor:
    """`weight` plus the layer's delta, added in fp32 and rounded once to its dtype, in `out`.

    out may be `weight` itself; it is returned.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/network_mixins.py::ToolkitModuleMixin.merge_in
    """
    down = bound.layer.down.to(weight.device, torch.float32)
    up = bound.layer.up.to(weight.device, torch.float32)
    if down.dim() == 4 and down.shape[2:] != (1, 1):
        delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        out.copy_(_add(weight, delta, multiplier, bound.scale))
        return out
    up, down = up.flatten(1), down.flatten(1)
    # On a CPU in pieces that stay in its cache: many times as fast, and the same bits.
    on_cpu = weight.device.type == "cpu"
    pieces = _pieces(*weight.flatten(1).shape) if on_cpu else 1
    plain = on_cpu and multiplier == bound.scale == 1
    rows = zip(
        up.tensor_split(pieces),
        weight.flatten(1).tensor_split(pieces),
        out.flatten(1).tensor_split(pieces),
        strict=True,
    )
    scratch = torch.empty(-(-len(up) // pieces), down.shape[1], device=weight.device)
    for up_rows, weight_rows, out_rows in rows:
        fused = plain and _fuses_exactly(*up_rows.shape, down.shape[1])
        if fused and weight.dtype == out.dtype == torch.float32:
            torch.addmm(weight_rows, up_rows, down, out=out_rows)
            continue
        piece = scratch[: len(up_rows)]
        if fused:
            torch.addmm(piece.copy_(weight_rows), up_rows, down, out=piece)
        else:
            torch.mm(up_rows, down, out=piece)
            _add(weight_rows, piece, multiplier, bound.scale)
        out_rows.copy_(piece)
    return out


def _pieces(rows: int, columns: int) -> int:
    # A matrix of very few rows is multiplied by other code, which sums in another order.
    at_once = CACHED * torch.get_num_threads()
    return max(1, min(-(-rows * columns // at_once), rows // FEWEST_ROWS))


def _add(
    weight: torch.Tensor, delta: torch.Tensor, multiplier: float, scale: float
) -> torch.Tensor:
    # in fp32 and in place of the delta; a factor of one changes no bit
    for factor in (multiplier, scale):
        if factor != 1:
            delta *= factor
    return delta.add_(weight)


@cache
def _fuses_exactly(rows: int, rank: int, columns: int) -> bool:
    # whether adding a product in one call rounds as the trainer's two calls do; BLAS libraries
    # differ in it, so it is tried on a CPU for each shape; few numbers may agree by chance
    if rows * columns < 1024:
        return False
    generator = torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(*shape, generator=generator) for shape in ((rows, rank), (rank, columns))
    )
    weight = torch.randn(rows, columns, generator=generator)
    return torch.equal(torch.addmm(weight, up, down), weight + up @ down)


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
            hidden = torch.nn.functional.conv2d(x, self.down, None, module.stride, module.padding)
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
