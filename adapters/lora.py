"""LoRA layers of Linear and Conv2d modules.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/network_mixins.py::ToolkitModuleMixin
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import conv2d, linear

from ..core.versions import Profile
from .layer import Layer, LiveLayer, misfit_text

FEWEST_ROWS = 16
CACHED = 1 << 17  # weights a CPU thread works on at once: half a megabyte in fp32


@dataclass(frozen=True)
class LoraLayer(Layer):
    """delta = up @ down * scale.

    down: (rank, in, ...). up: (out, rank, ...), for a convolution both with their kernels.
    """

    kind = "lora"

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def _is_zero(self) -> bool:
        return not (self.up.any() and self.down.any())

    def _norm(self) -> float:
        # |UD|^2 = tr(U^T U D D^T), without the product itself
        up, down = self.up.flatten(1).double(), self.down.flatten(1).double()
        square = ((up.T @ up) * (down @ down.T)).sum()
        return float(square.clamp(min=0).sqrt()) * abs(self.scale)

    def misfit(self, module: torch.nn.Module) -> str:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        given = (self.up.shape[0], *self.down.shape[1:])
        fits = given == tuple(weight.shape) and self.up.shape[2:] == (1,) * (weight.dim() - 2)
        if fits and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            return ""
        return misfit_text(f"{list(self.up.shape)} @ {list(self.down.shape)}", module)

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        yield "weight", partial(merge, self)

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        return LiveLora(self, module, multiplier)


class LiveLora(LiveLayer):
    """Computed beside the module, rounded once, added in the module's dtype.

    dtype: of the sums; the trainer's for what it trains is fp32.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        layer: LoraLayer,
        module: torch.nn.Module,
        multiplier: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(module, multiplier)
        self.multiplier = self.multiplier.to(dtype)
        scale = torch.tensor(layer.scale)
        self.hold(down=layer.down.to(dtype), up=layer.up.to(dtype), scale=scale)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.inner(x, *args, **kwargs)
        return output + self.delta(x).to(output.dtype)

    def delta(self, x: torch.Tensor) -> torch.Tensor:
        """What is added, in the dtype of the sums."""
        x, module = x.to(self.down.dtype), self.module
        if isinstance(module, torch.nn.Conv2d):
            where: Any = (module.stride, module.padding)
            hidden = conv2d(x, self.down, None, *where)
            up = conv2d(hidden, self.up)
        else:
            up = linear(linear(x, self.down), self.up)
        return up * self.scale * self.multiplier


def merge(layer: LoraLayer, base: torch.Tensor, multiplier: float, out: torch.Tensor) -> None:
    """Writes base + multiplier * (up @ down) * scale into `out`.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/network_mixins.py::ToolkitModuleMixin.merge_in
    """
    down = layer.down.to(base.device, torch.float32)
    up = layer.up.to(base.device, torch.float32)
    factors = tuple(factor for factor in (multiplier, layer.scale) if factor != 1)
    if down.dim() == 4 and down.shape[2:] != (1, 1):
        delta = conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        out.copy_(add(base, delta, factors))
        return
    merge_product(up.flatten(1), down.flatten(1), base, factors, out)


def merge_product(
    up: torch.Tensor,
    down: torch.Tensor,
    base: torch.Tensor,
    factors: tuple[float, ...],
    out: torch.Tensor,
) -> None:
    """Writes base + up @ down * factors into `out`, a matrix or what flattens to one.

    On a CPU in pieces that stay in its cache: many times as fast, and the same bits.
    """
    on_cpu = base.device.type == "cpu"
    pieces = _pieces(*base.flatten(1).shape) if on_cpu else 1
    scratch = torch.empty(-(-len(up) // pieces), down.shape[1], device=base.device)
    rows = zip(
        up.tensor_split(pieces),
        base.flatten(1).tensor_split(pieces),
        out.flatten(1).tensor_split(pieces),
        strict=True,
    )
    for up_rows, base_rows, out_rows in rows:
        fused = on_cpu and not factors and _fuses_exactly(*up_rows.shape, down.shape[1])
        if fused and base.dtype == out.dtype == torch.float32:
            torch.addmm(base_rows, up_rows, down, out=out_rows)
            continue
        piece = scratch[: len(up_rows)]
        if fused:
            torch.addmm(piece.copy_(base_rows), up_rows, down, out=piece)
        else:
            torch.mm(up_rows, down, out=piece)
            add(base_rows, piece, factors)
        out_rows.copy_(piece)


def add(base: torch.Tensor, delta: torch.Tensor, factors: tuple[float, ...]) -> torch.Tensor:
    """base + delta * factors in fp32, in place of delta; no factor may be 1."""
    for factor in factors:
        delta *= factor
    return delta.add_(base)


def _pieces(rows: int, columns: int) -> int:
    # A matrix of very few rows is multiplied by other code, which sums in another order.
    at_once = CACHED * torch.get_num_threads()
    return max(1, min(-(-rows * columns // at_once), rows // FEWEST_ROWS))


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
    base = torch.randn(rows, columns, generator=generator)
    return torch.equal(torch.addmm(base, up, down), base + up @ down)
