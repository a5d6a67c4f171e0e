"""The qtypes nvfp4 and convrot4: 4-bit floats, a scale (e4m3) per 16, one fp32 scale for all.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/{nvfp4_quant,convrot_quant}.py
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from .rotation import power_of_four, turn_blocks
from .scheme import Packed, Scheme, Tensors

BLOCK = 16
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
MOST, MOST_SCALE = 6.0, 448.0
LEAST_ROTATION, ROTATION = 16, 256
# of the scale that the largest weight asks for; the one with the least error is taken
SHARES = tuple(torch.linspace(0.70, 1.10, 9, dtype=torch.float64).tolist())


class Nvfp4(Scheme):
    """The weight is restored before the product."""

    own = True

    def fits(self, shape: torch.Size) -> bool:
        return shape[1] % BLOCK == 0

    def pack(self, weight: torch.Tensor) -> Tensors:
        weight = weight.float()
        blocks = weight.view(weight.shape[0], -1, BLOCK)
        whole = _unless_zero(weight.abs().amax() / (MOST * MOST_SCALE))
        scale = _best_scale(blocks, blocks.abs().amax(dim=-1) / (MOST * whole), whole)
        step = _unless_zero((scale.float() * whole).unsqueeze(-1))
        scaled = (blocks / step).clamp(-MOST, MOST)
        codes = (_level(scaled) | (scaled < 0).to(torch.uint8) << 3).view(weight.shape)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        return {"codes": packed, "scale": scale, "whole": whole.reshape(1)}

    def restore(self, held: Packed) -> torch.Tensor:
        return _restored(held, held.dtype)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(x, _restored(held, x.dtype), bias)


class RotatedFloat4(Nvfp4):
    """Weight and inputs are rotated. On a GPU without 4-bit products, as on a CPU, inputs keep
    their precision."""

    def fits(self, shape: torch.Size) -> bool:
        multiple = shape[0] % BLOCK == 0 and shape[1] % BLOCK == 0
        return multiple and _rotation(shape) >= LEAST_ROTATION

    def pack(self, weight: torch.Tensor) -> Tensors:
        return super().pack(turn_blocks(weight.float(), _rotation(weight.shape)))

    def restore(self, held: Packed) -> torch.Tensor:
        rotated = _restored(held, torch.float32)
        return turn_blocks(rotated, _rotation(held.shape)).to(held.dtype)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        rotated = turn_blocks(x, _rotation(held.shape)).reshape(-1, held.shape[1])
        product = linear(rotated, _restored(held, x.dtype), bias)
        return product.reshape(*x.shape[:-1], held.shape[0])


def _rotation(shape: torch.Size) -> int:
    return power_of_four(shape[1], ROTATION)


def _best_scale(blocks: torch.Tensor, asked: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    values = torch.tensor(VALUES, device=blocks.device)
    best, least = asked.to(torch.float8_e4m3fn), None
    for share in SHARES:
        scale = (asked * share).to(torch.float8_e4m3fn)
        step = _unless_zero((scale.float() * whole).unsqueeze(-1))
        scaled = (blocks / step).clamp(-MOST, MOST)
        near = values[_level(scaled).int()] * scaled.sign() * step
        error = (blocks - near).square().sum(dim=-1)
        better = torch.ones_like(error, dtype=torch.bool) if least is None else error < least
        best = torch.where(better, scale, best)
        least = error if least is None else torch.where(better, error, least)
    return best


def _level(scaled: torch.Tensor) -> torch.Tensor:
    edges = torch.tensor(EDGES, device=scaled.device)
    return torch.bucketize(scaled.abs(), edges).to(torch.uint8)


def _restored(held: Packed, dtype: torch.dtype) -> torch.Tensor:
    codes = torch.stack([held["codes"] & 15, held["codes"] >> 4], dim=-1).view(held.shape)
    values = torch.tensor((*VALUES, *(-value for value in VALUES)), device=codes.device)
    step = (held["scale"].float() * held["whole"].reshape(())).unsqueeze(-1)
    blocks = values[codes.int()].view(*step.shape[:2], BLOCK) * step
    return blocks.view(held.shape).to(dtype)


def _unless_zero(step: torch.Tensor) -> torch.Tensor:
    return torch.where(step > 0, step, torch.ones_like(step))
