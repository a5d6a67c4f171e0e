"""The qtypes of torchao: float8, int8, and uint2 to uint7.

Upstream: pytorch/ao@v0.10.0 torchao/quantization/{quant_api,quant_primitives}.py,
dtypes/floatx/float8_layout.py, dtypes/uintx/{plain,uintx}_layout.py
"""

from __future__ import annotations

import torch

from .bits import pack_bits, unpack_bits
from .scheme import Packed, Scheme, Tensors

EPSILON = torch.finfo(torch.float32).eps
GROUP = 64


class Float8Rows(Scheme):
    """8-bit floats, a scale per row."""

    def pack(self, weight: torch.Tensor) -> Tensors:
        info = torch.finfo(torch.float8_e4m3fn)
        scale = (_peak(weight) / info.max).clamp(min=EPSILON)
        codes = (weight * scale.reciprocal()).clamp(info.min, info.max)
        return {"codes": codes.to(torch.float8_e4m3fn), "scale": scale}

    def restore(self, held: Packed) -> torch.Tensor:
        return held["codes"].to(held.dtype) * held["scale"]


class Int8Rows(Scheme):
    """Bytes, a scale per row that the product is multiplied by."""

    def pack(self, weight: torch.Tensor) -> Tensors:
        scale = (_peak(weight) / 127.5).clamp(min=EPSILON)
        codes = (weight * (1.0 / scale)).round().clamp(-128, 127).to(torch.int8)
        return {"codes": codes, "scale": scale}

    def restore(self, held: Packed) -> torch.Tensor:
        return held["codes"].to(held.dtype) * held["scale"]

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        rows = torch.mm(x.reshape(-1, x.shape[-1]), held["codes"].t().to(x.dtype))
        product = (rows * held["scale"].flatten().to(x.dtype)).view(*x.shape[:-1], -1)
        return product if bias is None else product + bias.to(x.dtype)


class UintGroups(Scheme):
    """A few bits per weight, a scale and a zero point per group of 64, all in its own dtype."""

    def __init__(self, bits: int) -> None:
        self._bits, self._most = bits, 2**bits - 1

    def fits(self, shape: torch.Size) -> bool:
        return shape[1] % GROUP == 0

    def pack(self, weight: torch.Tensor) -> Tensors:
        groups = weight.reshape(-1, GROUP)
        low = groups.amin(dim=1, keepdim=True).clamp(max=0)
        high = groups.amax(dim=1, keepdim=True).clamp(min=0)
        scale = ((high - low) / float(self._most)).clamp(min=EPSILON)
        zero = (0 - (low / scale).round()).clamp(0, self._most).to(torch.int32)
        codes = ((groups * (1.0 / scale)).round() + zero).clamp(0, self._most)
        packed = pack_bits(codes.to(torch.uint8), self._bits)
        return {"codes": packed, "scale": scale, "zero": zero.to(torch.uint8)}

    def restore(self, held: Packed) -> torch.Tensor:
        groups = torch.Size((held.shape.numel() // GROUP, GROUP))
        codes = unpack_bits(held["codes"], self._bits, groups).to(held.dtype)
        return ((codes - held["zero"].to(held.dtype)) * held["scale"]).view(held.shape)


def _peak(weight: torch.Tensor) -> torch.Tensor:
    # of each row, the largest magnitude
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    return torch.maximum(-low.clamp(max=0), high.clamp(min=0))
