"""The qtypes convrot8, convrotint2 to 8 and their relatives: rotated, whole numbers.

On a GPU the trainer makes whole numbers of the inputs as well, row by row; on a CPU it does not.
Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/convrot_quant.py
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, pad

from .bits import pack_bits, unpack_bits
from .rotation import power_of_four, turn_blocks
from .scheme import Packed, Scheme, Tensors

LEAST_ROTATION, ROTATION = 16, 256
MOST = 127
GROUP = 128  # columns with one scale, or as many as divide all
LEAST_ROWS = 17  # that torch._int_mm multiplies
# of the scale that the largest weight asks for; the one with the least error is taken
SHARES = tuple(torch.linspace(0.2, 1.0, 16, dtype=torch.float64).tolist())
DIGITS = (1, 3, 9, 27, 81)  # places of a number to base 3


class RotatedBytes(Scheme):
    """A byte per weight, a scale (fp32) per row."""

    own = True
    most_input = MOST  # of the whole numbers that inputs become

    def fits(self, shape: torch.Size) -> bool:
        multiple = shape[1] % 16 == 0 and shape[0] % 8 == 0
        return multiple and self._rotation(shape) >= LEAST_ROTATION

    def pack(self, weight: torch.Tensor) -> Tensors:
        codes, scale = _round_rows(self._turned(weight), MOST)
        return {"codes": codes, "scale": scale}

    def restore(self, held: Packed) -> torch.Tensor:
        rotated = self._restored(held, torch.float32)
        return turn_blocks(rotated, self._rotation(held.shape)).to(held.dtype)

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        rows = turn_blocks(x, self._rotation(held.shape)).reshape(-1, held.shape[1])
        if x.is_cuda:
            product = self._multiply_whole(rows, held, bias)
        else:
            product = linear(rows, self._restored(held, x.dtype), bias)
        return product.reshape(*x.shape[:-1], held.shape[0])

    def codes(self, held: Packed) -> torch.Tensor:
        """The weight's whole numbers, int8."""
        return held["codes"]

    def _multiply_whole(
        self, rows: torch.Tensor, held: Packed, bias: torch.Tensor | None
    ) -> torch.Tensor:
        inputs, step = _round_rows(rows, self.most_input)
        padded = pad(inputs, (0, 0, 0, max(0, LEAST_ROWS - len(inputs))))
        whole = torch._int_mm(padded, self.codes(held).t())[: len(inputs)]
        product = whole.float() * held["scale"] * step.unsqueeze(1)
        return (product if bias is None else product + bias.float()).to(rows.dtype)

    def _restored(self, held: Packed, dtype: torch.dtype) -> torch.Tensor:
        return (self.codes(held).float() * held["scale"].unsqueeze(1)).to(dtype)

    def _turned(self, weight: torch.Tensor) -> torch.Tensor:
        return turn_blocks(weight.float(), self._rotation(weight.shape))

    def _rotation(self, shape: torch.Size) -> int:
        return power_of_four(shape[1], ROTATION)


class RotatedBits(RotatedBytes):
    """A few bits per weight, which become bytes again by a ratio of each group.

    bits: 8 has a scale per row alone.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._most = (1 << bits - 1) - 1

    def pack(self, weight: torch.Tensor) -> Tensors:
        turned = self._turned(weight)
        if self.bits == 8:
            codes, scale = _round_rows(turned, self._most)
            return {"codes": self._pack(codes), "scale": scale}
        codes, steps = _round_groups(turned, self._most, _group(weight.shape[1]))
        scale = steps.amax(dim=1) * (self._most / 127.0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return {
            "codes": self._pack(codes),
            "scale": scale,
            "ratio": steps / scale.unsqueeze(1),
        }

    def codes(self, held: Packed) -> torch.Tensor:
        codes = self._unpack(held)
        if "ratio" not in held.tensors:
            return codes
        ratio = held["ratio"]
        ratio = ratio.repeat_interleave(held.shape[1] // ratio.shape[1], dim=1)
        return (codes.float() * ratio).round().clamp(-MOST, MOST).to(torch.int8)

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        return pack_bits(codes.to(torch.int16) + self._most, self.bits)

    def _unpack(self, held: Packed) -> torch.Tensor:
        codes = unpack_bits(held["codes"], self.bits, held.shape)
        return (codes.to(torch.int16) - self._most).to(torch.int8)


class RotatedTernary(RotatedBits):
    """The numbers of RotatedBits(2), five in a byte."""

    def __init__(self) -> None:
        super().__init__(2)

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        digits = codes.flatten().to(torch.int16) + 1
        digits = pad(digits, (0, -digits.numel() % len(DIGITS))).view(-1, len(DIGITS))
        return (digits * digits.new_tensor(DIGITS)).sum(dim=1).to(torch.uint8)

    def _unpack(self, held: Packed) -> torch.Tensor:
        joined = held["codes"].to(torch.int16).unsqueeze(-1)
        digits = joined // joined.new_tensor(DIGITS) % 3 - 1
        return digits.flatten()[: held.shape.numel()].view(held.shape).to(torch.int8)


class RotatedRows4(RotatedBits):
    """4 bits per weight, a scale per row; inputs become 4 bits as well, where they do."""

    most_input = 7

    def __init__(self) -> None:
        super().__init__(4)

    def fits(self, shape: torch.Size) -> bool:
        return shape[1] % ROTATION == 0 and shape[0] % 8 == 0

    def pack(self, weight: torch.Tensor) -> Tensors:
        codes, scale = _round_groups(self._turned(weight), self._most, weight.shape[1])
        return {"codes": self._pack(codes), "scale": scale.flatten()}


def _group(width: int) -> int:
    group = GROUP
    while width % group:
        group //= 2
    return group


def _round_rows(rows: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    # whole numbers (int8) and the scale of each row
    rows = rows.float()
    scale = rows.abs().amax(dim=1) / most
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (rows / scale.unsqueeze(1)).round().clamp(-most, most).to(torch.int8), scale


def _round_groups(rows: torch.Tensor, most: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    # whole numbers (int8) and the scale of each group, with the least squared error
    groups = rows.float().reshape(rows.shape[0], -1, group)
    step = _best_step(groups, most)
    for _ in range(2):  # what fits the numbers best, twice
        codes = (groups / step).round().clamp(-most, most)
        above = (groups * codes).sum(dim=-1, keepdim=True)
        below = (codes * codes).sum(dim=-1, keepdim=True)
        fitted = above / below.clamp_min(1e-12)
        step = torch.where((below > 0) & (above > 0), fitted, step)
    codes = (groups / step).round().clamp(-most, most)
    return codes.to(torch.int8).view(rows.shape), step.squeeze(-1)


def _best_step(groups: torch.Tensor, most: int) -> torch.Tensor:
    peak = groups.abs().amax(dim=-1, keepdim=True)
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    best, least = peak / most, None
    for share in SHARES:
        step = peak * (share / most)
        near = (groups / step).round().clamp(-most, most) * step
        error = (groups - near).square().sum(dim=-1, keepdim=True)
        if least is None:
            best, least = step, error
            continue
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best
