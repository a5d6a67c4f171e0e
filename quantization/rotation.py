"""Rotations that spread a weight's outliers over its columns, as the trainer's own qtypes use."""

from __future__ import annotations

from functools import cache

import torch

SEED = 0x0EB17  # of the trainer; the width is added
Signs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def power_of_two(width: int) -> int:
    """The largest power of two that divides a width."""
    return width & -width


def power_of_four(width: int, most: int) -> int:
    """The largest power of four that divides a width, up to `most`."""
    size = 1
    while width % (size * 4) == 0 and size < most:
        size *= 4
    return size


class Shuffled:
    """Columns shuffled, some negated, then turned by a Hadamard matrix in blocks.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/orbit_quant.py
    """

    def __init__(self, width: int) -> None:
        self._width, self._block = width, power_of_two(width)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., width) rotated."""
        order, _, signs = _shuffle(self._width, x.device)
        return _hadamard(x.index_select(-1, order) * signs.to(x.dtype), self._block)

    def turn_back(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of turn."""
        _, back, signs = _shuffle(self._width, x.device)
        return (_hadamard(x, self._block) * signs.to(x.dtype)).index_select(-1, back)


def turn_blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """x (..., width) turned by a regular Hadamard matrix in blocks; its own inverse.

    block: a power of four.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/convrot_quant.py::rotate
    """
    blocks = x.reshape(-1, x.shape[-1] // block, block)
    return torch.matmul(blocks, _regular_hadamard(block, x.device, x.dtype)).reshape(x.shape)


def _hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    rows, step = x.reshape(-1, block), 1
    while step < block:
        first, second = rows.view(-1, block // (2 * step), 2, step).unbind(2)
        rows = torch.stack((first + second, first - second), dim=2).view(-1, block)
        step *= 2
    return (rows * block**-0.5).view(x.shape)


@cache
def _shuffle(width: int, device: torch.device) -> Signs:
    generator = torch.Generator().manual_seed(SEED + width)
    order = torch.randperm(width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator, dtype=torch.int8) * 2 - 1
    return order.to(device), torch.argsort(order).to(device), signs.to(device)


@cache
def _regular_hadamard(size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, four)
    return (matrix / size**0.5).to(device, dtype)
