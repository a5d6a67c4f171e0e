"""Fingerprints of arithmetic: equal where a processor's kernels, or a library, round alike.

Imports nothing but torch and Pillow, so the trainer's interpreter and ours ask the same question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache

import torch
from PIL import Image


def bf16_arithmetic() -> str:
    """Of the bf16 kernels that models use.

    Without AVX-512 and AMX, bf16 goldens are up to 21 levels off (fp32 ones 1), measured.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 32, 64, 96, generator=generator).bfloat16() for _ in range(2))
    kernel = torch.randn(64, 32, 3, 3, generator=generator).bfloat16()
    convolved = torch.nn.functional.conv2d(x, kernel, padding=1)
    return _digest(
        (
            x.flatten(0, 2) @ y.flatten(0, 2).T[:, :256],
            convolved,
            torch.nn.functional.group_norm(convolved, 8),
            torch.nn.functional.silu(convolved),
            torch.nn.functional.gelu(x, approximate="tanh"),
            torch.nn.functional.layer_norm(x, (96,)),
            torch.nn.functional.scaled_dot_product_attention(x, y, x),
        )
    )


@cache
def resizing() -> str:
    """Of Pillow, which makes control images smaller or larger.

    12.3 and 13.0 differ for some pairs of sizes, most of all where a tall picture becomes lower: up
    to 14 levels in goldens, and the trainer's move along.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (320, 96, 3), dtype=torch.uint8, generator=generator)  # a tall one
    picture = Image.fromarray(pixels.numpy())
    digest = hashlib.sha256()
    for size in ((128, 96), (96, 320), (64, 64), (224, 224), (1024, 768)):
        for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            digest.update(picture.resize(size, how).tobytes())
    return digest.hexdigest()[:16]


def layer_arithmetic(dtype: torch.dtype) -> str:
    """Of the kernels that adapters use on small layers."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 24, 40, generator=generator).to(dtype) for _ in range(2))
    kernel = torch.randn(8, 3, 3, 3, generator=generator).to(dtype)
    return _digest(
        (
            torch.nn.functional.linear(x[:, 0], y[0, 0], y[0, 0, :, 0]),
            x[:, :, :, :4] @ y[:, :, :4],
            torch.nn.functional.conv2d(x, kernel, stride=2, padding=1),
            torch.kron(x[0, 0, :5, :6], y[0, 0, :4, :3]),
            torch.einsum("...qs,os->...qo", x, y[0, 0]),
            torch.einsum("...qo,pq->...po", x, y[0, 0, :, :24]),
            torch.linalg.norm(x[0, 0], dim=1),
            torch.nn.functional.layer_norm(x, (40,)),
            torch.nn.functional.group_norm(x, 3),
        )
    )


def _digest(results: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.float().numpy().tobytes())
    return digest.hexdigest()[:16]
