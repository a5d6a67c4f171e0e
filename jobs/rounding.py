"""How far a saved file's rounding alone may move a picture, found by rounding it otherwise.

The trainer draws its samples from fp32 weights and saves them in fewer bits. What was lost is not
known, but how much a loss of that size does to the picture can be seen: the file's values are moved
within the interval that rounds to them, and the sample is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..adapters.read import read_metadata

COARSE = {torch.float16: (10, -14), torch.bfloat16: (7, -126)}  # bits kept, least exponent


def saved_dtype(path: Path) -> str:
    """The coarsest type of a file's values: fp32, fp16 or bf16."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return "bf16" if "BF16" in kinds else "fp16" if "F16" in kinds else "fp32"


def write_dithered(path: Path, target: Path, seed: int = 0) -> None:
    """A copy of a file in fp32 with each value moved within what rounds to it, evenly spread.

    Values that are exactly 0 stay: the trainer's up weights begin there.
    """
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {key: _dithered(value, generator) for key, value in load_file(str(path)).items()}
    save_file(tensors, str(target), metadata=_text(read_metadata(path)))


def _dithered(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if value.dtype not in COARSE:
        return value
    exact = value.float()
    bits, least = COARSE[value.dtype]
    exponent = (torch.frexp(exact).exponent - 1).clamp(min=least)
    step = torch.pow(2.0, (exponent - bits).float())  # to the next value of its type
    shift = torch.rand(value.shape, generator=generator) - 0.5
    return torch.where(exact == 0, exact, exact + shift * step).contiguous()


def _text(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}
