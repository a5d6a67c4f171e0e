"""Small whole numbers packed into bytes without waste."""

from __future__ import annotations

from collections.abc import Iterator

import torch

PLANES = (4, 2, 1)  # bits


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes (1-D) that hold whole numbers below 2**bits, bits up to 8."""
    flat = codes.flatten().to(torch.uint8)
    if bits == 8:
        return flat
    return torch.cat([_pack(flat >> low & (1 << width) - 1, width) for width, low in _planes(bits)])


def unpack_bits(packed: torch.Tensor, bits: int, shape: torch.Size) -> torch.Tensor:
    """The numbers that pack_bits packed, uint8 in this shape."""
    if bits == 8:
        return packed.view(shape)
    count, start = shape.numel(), 0
    codes = torch.zeros(count, dtype=torch.uint8, device=packed.device)
    for width, low in _planes(bits):
        size = -(-count * width // 8)
        codes |= _unpack(packed[start : start + size], width)[:count] << low
        start += size
    return codes.view(shape)


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    # (width, lowest bit) of parts whose width divides a byte
    low = 0
    for width in PLANES:
        if bits & width:
            yield width, low
            low += width


def _pack(values: torch.Tensor, width: int) -> torch.Tensor:
    # a byte holds values that lie far apart, so that each step works on whole rows
    rows = 8 // width
    values = torch.nn.functional.pad(values, (0, -values.numel() % rows)).view(rows, -1)
    packed = torch.zeros_like(values[0])
    for row, part in enumerate(values):
        packed |= part << row * width
    return packed


def _unpack(packed: torch.Tensor, width: int) -> torch.Tensor:
    mask = (1 << width) - 1
    return torch.cat([packed >> low & mask for low in range(0, 8, width)])
