"""Single layers to quantize, and the digests of what they come to. Needs torch alone.

Imported by the trainer's interpreter and by ours, which must draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

# (out, in): one that all qtypes hold, a wide one, one that few hold, one row
SHAPES = {"plain": (96, 64), "wide": (128, 256), "odd": (40, 48), "row": (1, 128)}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
SEED = 30


def draw_layers() -> dict[str, tuple[Any, torch.Tensor]]:
    """Name -> layer in fp32 and an input for it."""
    generator = torch.Generator().manual_seed(SEED)
    layers: dict[str, tuple[Any, torch.Tensor]] = {}
    for name, (rows, columns) in SHAPES.items():
        layer = torch.nn.Linear(columns, rows, bias=name != "odd")
        layers[name] = (layer, torch.randn(2, 5, columns, generator=generator))
    conv = torch.nn.Conv2d(8, 12, 3, padding=1)
    layers["conv"] = (conv, torch.randn(2, 8, 6, 5, generator=generator))
    for layer, _ in layers.values():
        for parameter in layer.requires_grad_(False).parameters():
            width = parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)
    return layers


def cases(qtypes: list[str]) -> Iterator[tuple[str, str, str]]:
    """(qtype, dtype, layer): all of them in bf16, and two layers in the other dtypes."""
    for qtype in qtypes:
        for dtype in DTYPES:
            for layer in (*SHAPES, "conv"):
                costly = qtype.startswith("orbitvq") and (dtype, layer) != ("bf16", "plain")
                if not costly and (dtype == "bf16" or layer in ("plain", "wide")):
                    yield qtype, dtype, layer


def digest(tensor: torch.Tensor) -> str:
    """Of a tensor's values, equal for 0.0 and -0.0."""
    values = tensor.detach().float().contiguous() + 0.0
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]
