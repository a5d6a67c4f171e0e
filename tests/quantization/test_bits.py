"""Small numbers in bytes."""

from __future__ import annotations

import pytest
import torch

from ai_toolkit_inference.quantization.bits import pack_bits, unpack_bits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_numbers_come_back(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert torch.equal(unpack_bits(packed, bits, codes.shape), codes)


def test_no_bit_is_wasted() -> None:
    codes = torch.randint(0, 8, (64, 64), dtype=torch.uint8)
    packed = pack_bits(codes, 3)
    assert packed.numel() == 64 * 64 * 3 // 8
    assert torch.equal(unpack_bits(packed, 3, codes.shape), codes)
