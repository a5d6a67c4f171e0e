"""A random LoRA in the trainer's format, for trying things out and for tests."""

from __future__ import annotations

import json
import math
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.errors import OutputError
from ..core.specs import ModelSpec
from ..core.versions import LATEST
from .bind import layer_names

STRENGTH = 0.3  # of the up weights; visible, without drowning the base


def write_tiny_lora(
    spec: ModelSpec,
    modules: Mapping[str, torch.nn.Module],
    path: Path,
    seed: int = 0,
    rank: int = 4,
    trainer_version: str = LATEST.version,
) -> Path:
    """Writes a seeded random LoRA over all layers the trainer's network covers. Returns the path.

    modules: component name -> module of the model it is for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for name, (target, module) in layer_names(spec.lora, modules).items():
        if not any(part in target for part in spec.lora.targets):
            continue
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, *(1,) * (weight.dim() - 2), generator=generator)
        endings = ("lora_down", "lora_up") if spec.lora.alpha else ("lora_A", "lora_B")
        tensors[f"{name}.{endings[0]}.weight"] = down / math.sqrt(down[0].numel())
        tensors[f"{name}.{endings[1]}.weight"] = up * STRENGTH
        if spec.lora.alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, _metadata(spec, path, trainer_version))
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} could not be written: {error}") from error
    finally:
        if os.path.lexists(part):
            part.unlink()
    return path


def _metadata(spec: ModelSpec, path: Path, trainer_version: str) -> dict[str, str]:
    software = {
        "name": "ai-toolkit",
        "repo": "https://github.com/ostris/ai-toolkit",
        "version": trainer_version,
    }
    return {
        "format": "pt",
        "name": path.stem,
        "software": json.dumps(software),
        "training_info": json.dumps({"step": 0, "epoch": 0}),
        "ss_base_model_version": spec.lora.base_model,
        "ss_output_name": path.stem,
        "modelspec.description": "random weights, not trained",
    }
