"""The points of a lattice that lie nearest to the origin, and which of them is nearest to a vector.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/orbit_vq_quant.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

KEY_BITS, KEY_SHIFT = 6, 32  # of a point's coordinates, doubled, in one number
ROWS = 2**26  # scores at once
D4_REACH = 26  # of doubled coordinates
E8_RADIUS = 48  # squared, of doubled coordinates


@dataclass(frozen=True)
class Lattice:
    """A table of points. width: the distance of two steps. square: half of each squared length."""

    dimensions: int
    width: float
    points: torch.Tensor  # (count, dimensions)
    square: torch.Tensor
    keys: torch.Tensor  # sorted
    order: torch.Tensor

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index (int32) of the point nearest to each row."""
        found, inside = self._look_up(_round(vectors / self.width))
        far = ~inside
        if far.any():
            found[far] = self._search(vectors[far])
        return found

    def _look_up(self, rounded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        digits = (rounded * 2).round().to(torch.int64) + KEY_SHIFT
        most = (1 << KEY_BITS) - 1
        valid = ((digits >= 0) & (digits <= most)).all(dim=-1)
        key = _join(digits.clamp(0, most))
        place = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return self.order[place], valid & (self.keys[place] == key)

    def _search(self, vectors: torch.Tensor) -> torch.Tensor:
        # the trainer searches in half precision on a GPU
        dtype = torch.float16 if vectors.is_cuda else torch.float32
        points, square = self.points.T.contiguous().to(dtype), self.square.to(dtype)
        parts = vectors.to(dtype).split(max(256, ROWS // len(self.points)))
        return torch.cat([(part @ points - square).argmax(dim=1) for part in parts]).int()


@cache
def lattice(dimensions: int, count: int, width: float, device: torch.device) -> Lattice:
    """The `count` points of D4 or E8 nearest to the origin, `width` apart."""
    doubled = _enumerate(dimensions, count)
    keys, order = torch.sort(_join(doubled.to(torch.int64) + KEY_SHIFT))
    points = doubled.float() / 2.0 * width
    square = points.square().sum(dim=1) / 2
    tensors = (tensor.to(device) for tensor in (points, square, keys, order.int()))
    return Lattice(dimensions, width, *tensors)


@cache
def _enumerate(dimensions: int, count: int) -> torch.Tensor:
    # doubled coordinates: all even or, in E8 alone, all odd, with a sum that 4 divides
    if dimensions == 4:
        choices, most = [torch.arange(-D4_REACH, D4_REACH + 1, 2)], D4_REACH**2 + 1
    else:
        choices, most = [torch.arange(-6, 7, 2), torch.arange(-5, 6, 2)], E8_RADIUS
    kept = []
    for values in choices:
        rest = torch.cartesian_prod(*[values.int()] * (dimensions - 1))
        for first in values.tolist():
            points = torch.nn.functional.pad(rest, (1, 0), value=first)
            points = points[points.sum(dim=1).remainder(4) == 0]
            kept.append(points[points.square().sum(dim=1) <= most])
    points = torch.cat(kept)
    length = points.to(torch.int64).square().sum(dim=1)
    key = _join(points.to(torch.int64) + KEY_SHIFT)
    return points[torch.argsort(length * (1 << KEY_BITS * dimensions) + key)[:count]]


def _join(digits: torch.Tensor) -> torch.Tensor:
    # one number for each row of small ones
    shifts = torch.arange(digits.shape[1], device=digits.device) * KEY_BITS
    return (digits << shifts).sum(dim=1)


def _round(vectors: torch.Tensor) -> torch.Tensor:
    # the nearest point of the whole lattice (Conway and Sloane)
    whole = _round_even(vectors)
    if vectors.shape[-1] == 4:
        return whole
    half = _round_even(vectors - 0.5) + 0.5
    near = (vectors - whole).square().sum(dim=-1) <= (vectors - half).square().sum(dim=-1)
    return torch.where(near.unsqueeze(-1), whole, half)


def _round_even(vectors: torch.Tensor) -> torch.Tensor:
    # whole numbers with an even sum: where it is odd, the worst one is rounded the other way
    rounded = vectors.round()
    odd = rounded.to(torch.int64).sum(dim=-1, keepdim=True).remainder(2) != 0
    error = vectors - rounded
    worst = error.abs().argmax(dim=-1, keepdim=True)
    step = torch.where(error.gather(-1, worst) >= 0, 1.0, -1.0)
    turned = rounded.scatter(-1, worst, rounded.gather(-1, worst) + step)
    return torch.where(odd, turned, rounded)
