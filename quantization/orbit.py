"""The qtypes orbit2 to orbit4: rotated rows, each a length and a direction in few levels.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/orbit_quant.py
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cache

import torch
from torch.nn.functional import linear

from .bits import pack_bits, unpack_bits
from .rotation import Shuffled, power_of_two
from .scheme import Packed, Scheme, Tensors

LEAST_BLOCK = 32  # columns that are rotated together
ROUNDS = 200


class Rotated(Scheme):
    """Inputs are rotated as the weight is, so that the product is the same."""

    own = True

    def fits(self, shape: torch.Size) -> bool:
        return power_of_two(shape[1]) >= LEAST_BLOCK

    def restore(self, held: Packed) -> torch.Tensor:
        rotated = self.rotated(held, torch.float32)
        return Shuffled(held.shape[1]).turn_back(rotated).to(held.dtype)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(Shuffled(held.shape[1]).turn(x), self.rotated(held, x.dtype), bias)

    @abstractmethod
    def rotated(self, held: Packed, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) in a dtype, with its columns still rotated."""


class Orbit(Rotated):
    """A length per row, and the numbers of its direction in few levels."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def pack(self, weight: torch.Tensor) -> Tensors:
        rotated = Shuffled(weight.shape[1]).turn(weight.float())
        length = rotated.norm(dim=1)
        direction = rotated / (length + 1e-10).unsqueeze(1)
        levels = self._levels(weight.shape[1], weight.device)
        codes = torch.bucketize(direction, (levels[:-1] + levels[1:]) / 2, out_int32=True)
        packed = pack_bits(codes.to(torch.uint8), self._bits)
        return {"codes": packed, "length": length.to(weight.dtype)}

    def rotated(self, held: Packed, dtype: torch.dtype) -> torch.Tensor:
        codes = unpack_bits(held["codes"], self._bits, held.shape)
        levels = self._levels(held.shape[1], codes.device).to(dtype)
        return levels[codes.int()] * held["length"].to(dtype).unsqueeze(1)

    def _levels(self, width: int, device: torch.device) -> torch.Tensor:
        return (_normal_levels(self._bits) * width**-0.5).to(device)


@cache
def _normal_levels(bits: int) -> torch.Tensor:
    # those that stand for normal values with the least squared error (Lloyd and Max)
    count = 2**bits
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = math.sqrt(2.0) * torch.erfinv(2.0 * middle - 1.0)
    end = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(ROUNDS):
        edges = torch.cat([-end, (levels[:-1] + levels[1:]) / 2.0, end])
        density = torch.exp(-edges * edges / 2.0) / math.sqrt(2.0 * math.pi)
        share = 0.5 * (1.0 + torch.erf(edges / math.sqrt(2.0)))
        levels = (density[:-1] - density[1:]) / (share[1:] - share[:-1])
    return levels.float()
