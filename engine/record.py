"""What is said of a sample: everything that decided it."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..adapters.apply import Applied
from ..core.requests import SampleRequest
from .control_images import describe_control_image
from .plan import Plan

LIBRARIES = ("ai-toolkit-inference", "torch", "diffusers", "transformers", "numpy", "pillow")


def record(
    plan: Plan,
    request: SampleRequest,
    device: torch.device,
    packed: dict[str, int],
    applied: tuple[Applied, ...],
    seconds: float,
) -> dict[str, Any]:
    """Everything that decided a picture, JSON-ready. packed: component -> quantized layers."""
    recipe = request.recipe
    settings = {key: value for key, value in asdict(plan.settings).items() if value is not None}
    if plan.spec.id != "sdxl":
        del settings["prompt_2"], settings["negative_prompt_2"]
    return {
        "model": plan.spec.id,
        "weights": Path(recipe.weights).name,
        "dtype": recipe.dtype,
        "quantize": plan.quantization.text,
        "quantize_te": plan.quantization.encoders or "none",
        "layer_offloading": recipe.layer_offloading,
        "quantized_layers": packed,
        "device": str(device),
        "trainer_version": plan.profile.version,
        "trainer_commit": plan.profile.commit,
        "adapters": [
            {
                "file": Path(planned.adapter.path).name,
                "sha256": planned.adapter.digest,
                "multiplier": planned.multiplier,
                **({"side": planned.side} if planned.side else {}),
                "mode": "live" if act.live else "merged",
                "layers": len(act.layers),
                "left_out": len(planned.adapter.layers) - len({b.layer.name for b in act.layers}),
                "effective": planned.adapter.effective,
            }
            for planned, act in zip(plan.adapters, applied, strict=True)
        ],
        "base_loras": [
            {
                "field": lora.field,
                "file": Path(lora.adapter.path).name,
                "sha256": lora.adapter.digest,
            }
            for lora in plan.base_loras
        ],
        "control_images": [describe_control_image(image) for image in request.control_images],
        **settings,
        "libraries": library_versions(),
        "seconds": round(seconds, 3),
    }


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that decide pixels; those missing are left out."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
