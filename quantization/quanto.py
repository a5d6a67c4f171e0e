"""The qtypes of optimum-quanto: qfloat8, qint8, qint4, qint2 and their relatives.

Upstream: huggingface/optimum-quanto@0.2.4 optimum/quanto/library/{quantize,qbytes_mm}.py,
tensor/qtensor_func.py, tensor/qbits/qbits.py
"""

from __future__ import annotations

import torch

from .bits import pack_bits, unpack_bits
from .scheme import Packed, Scheme, Tensors

ALIGNED = 16  # bytes; torch's product of bytes on a CPU crashes at rows that start elsewhere


class _Quanto(Scheme):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    replaces = True


class QuantoBytes(_Quanto):
    """A byte per weight, a scale per row. The scale is multiplied in before the product."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)

    def pack(self, weight: torch.Tensor) -> Tensors:
        size = weight.abs()
        # a single row has one scale for all, which is the same
        peak = size.amax(dim=tuple(range(1, weight.dim())), keepdim=True)
        scale = peak / float(self._info.max)
        codes = weight / scale
        if not self._dtype.is_floating_point:
            codes = codes.round()
        codes = codes.clamp(min=self._info.min, max=self._info.max).to(self._dtype)
        return {"codes": codes, "scale": scale}

    def restore(self, held: Packed) -> torch.Tensor:
        return held["scale"] * held["codes"].to(held.dtype)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        codes, scale = held["codes"], held["scale"]
        whole = codes.dtype == torch.int8 and x.dtype == torch.bfloat16
        if whole and x.device.type == "cpu" and _is_aligned(codes):
            rows = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), codes, scale.flatten())
            product = rows.view(*x.shape[:-1], held.shape[0])
        else:
            product = torch.matmul(x.to(held.dtype), self.restore(held).t())
        return product if bias is None else product + bias


class QuantoBits(_Quanto):
    """A few bits per weight, a scale and a shift per group."""

    def __init__(self, bits: int) -> None:
        self._bits, self._most = bits, 2**bits - 1

    def pack(self, weight: torch.Tensor) -> Tensors:
        groups = weight.reshape(_groups(weight.shape))
        inner = tuple(range(1, groups.dim()))
        low, high = groups.amin(dim=inner, keepdim=True), groups.amax(dim=inner, keepdim=True)
        scale, shift = (high - low) / self._most, -low
        codes = ((groups + shift) / scale).round().clamp(min=0, max=self._most).to(torch.uint8)
        return {"codes": pack_bits(codes, self._bits), "scale": scale, "shift": shift}

    def restore(self, held: Packed) -> torch.Tensor:
        codes = unpack_bits(held["codes"], self._bits, _groups(held.shape))
        return (held["scale"] * codes - held["shift"]).view(held.shape)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        product = torch.matmul(x, self.restore(held).t())
        return product if bias is None else product + bias


def _is_aligned(codes: torch.Tensor) -> bool:
    return codes.shape[1] % ALIGNED == 0 and codes.data_ptr() % ALIGNED == 0


def _groups(shape: torch.Size) -> torch.Size:
    # (groups, weights of one), of 128, 96, 64 or 32; whole rows if none of these divides them
    columns = shape[1:].numel()
    for size in (128, 96, 64, 32):
        if columns > 128 and columns % size == 0:
            return torch.Size((shape.numel() // size, size))
    return shape
