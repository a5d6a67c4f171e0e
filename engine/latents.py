"""Latents that come from outside of a sample: empty ones, of a picture, and their picture.

They are unscaled, as a VAE encodes to and decodes from: (1, C, H/8, W/8).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..core.errors import InvalidInputError
from ..core.prompts import floor_side
from ..core.requests import MAX_SIDE
from ..core.specs import ModelSpec

LATENT_PIXELS = 8  # px per latent
LEAST_SIDE = 64  # px


def check_latents(spec: ModelSpec, latents: Any) -> tuple[int, int]:
    """The width and height, px, of one image's latents. Raises InvalidInputError for others."""
    check_draws_images(spec)
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise InvalidInputError(f"latents are of {kind}; they must be a tensor of floats")
    if latents.dim() != 4 or latents.shape[:2] != (1, spec.latent_channels):
        raise InvalidInputError(
            f"latents have the shape {list(latents.shape)}; {spec.id} takes one image: "
            f"(1, {spec.latent_channels}, H/8, W/8), as AI Toolkit Empty Latent and Encode give it"
        )
    if not latents.isfinite().all():
        raise InvalidInputError("latents hold NaN or infinite values; mend what made them")
    return latents.shape[3] * LATENT_PIXELS, latents.shape[2] * LATENT_PIXELS


def check_size(spec: ModelSpec, width: int, height: int, grid: int, what: str) -> None:
    """Raises InvalidInputError unless a sample can be this large, px. grid: see ModelSpec.grid."""
    sides = (width, height)
    if all(side % grid == 0 and LEAST_SIDE <= side <= MAX_SIDE for side in sides):
        return
    near = [min(max(LEAST_SIDE, round(side / grid) * grid), MAX_SIDE) for side in sides]
    raise InvalidInputError(
        f"{what} of {width}x{height} px; for {spec.id} both sides must be multiples of {grid} from "
        f"{LEAST_SIDE} to {MAX_SIDE}, as {near[0]}x{near[1]}"
    )


def check_draws_images(spec: ModelSpec) -> None:
    """Raises InvalidInputError for models of clips."""
    if spec.task == "video":
        raise InvalidInputError(f"{spec.id} draws clips, which start from noise; leave latents out")


def empty_latents(spec: ModelSpec, width: int = 0, height: int = 0) -> torch.Tensor:
    """Zeros, (1, C, H/8, W/8), of a size in px: floored to the model's grid, 0 for its default.

    Raises InvalidInputError for models of clips.
    """
    check_draws_images(spec)
    asked = width or spec.defaults.width, height or spec.defaults.height
    wide, high = (floor_side(side, spec.multiple_of) for side in asked)
    check_size(spec, wide, high, spec.multiple_of, "an empty latent")
    return torch.zeros(1, spec.latent_channels, high // LATENT_PIXELS, wide // LATENT_PIXELS)


def encode_picture(vae: Any, picture: Any, device: torch.device) -> torch.Tensor:
    """What a VAE makes of an RGB image of PIL: float32 (1, C, H/8, W/8) on the CPU."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    pixels = (pixels.float() / 127.5 - 1).to(device, vae.dtype)
    latents = vae.encode(_framed(vae, pixels)).latent_dist.mode()
    return latents.reshape(1, latents.shape[1], *latents.shape[-2:]).float().cpu()


def decode_latents(vae: Any, latents: torch.Tensor, device: torch.device) -> np.ndarray:
    """The picture of latents (1, C, H/8, W/8), as models draw theirs: uint8 (1, H, W, 3)."""
    pixels = vae.decode(_framed(vae, latents.to(device, vae.dtype)), return_dict=False)[0]
    pixels = (pixels.reshape(3, *pixels.shape[-2:]) * 0.5 + 0.5).clamp(0, 1)
    return (pixels.permute(1, 2, 0)[None].float().cpu().numpy() * 255).round().astype(np.uint8)


def _framed(vae: Any, batch: torch.Tensor) -> torch.Tensor:
    # a VAE of videos takes a picture as one frame
    return batch[:, :, None] if next(vae.parameters()).dim() == 5 else batch
