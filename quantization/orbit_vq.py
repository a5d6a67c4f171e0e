"""The qtypes orbitvq2 to orbitvq4: rotated weights, several at a time as a point of a lattice.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/orbit_vq_quant.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .lattice import Lattice, lattice
from .orbit import Rotated
from .rotation import Shuffled, power_of_two
from .scheme import Packed, Tensors

GROUP = 128  # columns with one scale
TINY = 1e-12


@dataclass(frozen=True)
class Table:
    """Which points stand for weights. width: with the least error for normal values."""

    dimensions: int
    count: int
    width: float


TABLES = {2: Table(8, 2**16, 0.98), 3: Table(4, 2**12, 0.4722), 4: Table(4, 2**16, 0.2617)}


class OrbitPoints(Rotated):
    """A scale per group of columns, and points of a lattice for several of its numbers."""

    def __init__(self, bits: int) -> None:
        self._table = TABLES[bits]

    def pack(self, weight: torch.Tensor) -> Tensors:
        rotated = Shuffled(weight.shape[1]).turn(weight.float())
        groups = rotated.view(*self._groups(weight.shape))
        scale = groups.norm(dim=-1, keepdim=True) / groups.shape[-1] ** 0.5 + TINY
        points = self._points(weight.device)
        codes = points.nearest((groups / scale).reshape(-1, points.dimensions))
        chosen = points.points[codes].view(groups.shape)
        best = (groups * chosen).sum(dim=-1) / (chosen.square().sum(dim=-1) + TINY)
        return {"codes": self._shrink(codes), "scale": best.to(weight.dtype)}

    def rotated(self, held: Packed, dtype: torch.dtype) -> torch.Tensor:
        points = self._points(held["codes"].device).points.to(dtype)
        chosen = points[self._grow(held["codes"])].view(*self._groups(held.shape))
        return (chosen * held["scale"].to(dtype).unsqueeze(-1)).view(held.shape)

    def _points(self, device: torch.device) -> Lattice:
        table = self._table
        return lattice(table.dimensions, table.count, table.width, device)

    def _groups(self, shape: torch.Size) -> tuple[int, int, int]:
        size = min(GROUP, power_of_two(shape[1]))
        return shape[0], shape[1] // size, size

    def _shrink(self, codes: torch.Tensor) -> torch.Tensor:
        # two bytes each; of 12 bits, two codes in three bytes
        if self._table.count == 2**16:
            return codes.to(torch.int16).view(torch.uint8)
        low, high = codes.view(-1, 2).unbind(1)
        joined = low | high << 12
        return torch.stack([joined & 255, joined >> 8 & 255, joined >> 16], 1).to(torch.uint8)

    def _grow(self, held: torch.Tensor) -> torch.Tensor:
        if self._table.count == 2**16:
            return held.view(torch.int16).to(torch.int32) & 65535
        first, second, third = held.to(torch.int32).unbind(1)
        joined = first | second << 8 | third << 16
        return torch.stack([joined & 4095, joined >> 12], dim=1).flatten()
