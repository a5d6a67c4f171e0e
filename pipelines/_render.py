"""What the families' render functions share: their context, step reports, pixels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.prompts import Settings
from ..core.versions import Profile
from ._loading import LoadedModel


@dataclass(frozen=True)
class Step:
    """One finished denoising step. `preview()` draws it: uint8 (h, w, 3), latent resolution."""

    index: int  # from 1
    total: int
    preview: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Clip:
    """What a render function may give instead of frames alone.

    frames: uint8 (F, H, W, 3). fps: the model's own, 0 for the settings'. audio: float32
    (channels, samples) at audio_rate Hz.
    """

    frames: np.ndarray
    fps: float = 0.0
    audio: np.ndarray | None = None
    audio_rate: int = 0


@dataclass(frozen=True)
class RenderContext:
    """What a render function works with.

    generator: the global CPU generator, seeded by the engine.
    latents: (1, C, H/8, W/8), unscaled, or None. control_images: PIL images, RGB or RGBA.
    place: puts a pipeline's parts on the device for the time of the render.
    on_step: told of each step; it stops the run by raising.
    """

    model: LoadedModel
    settings: Settings
    profile: Profile
    generator: torch.Generator
    place: Callable[[Any], AbstractContextManager[None]]
    on_step: Callable[[Step], None]
    latents: torch.Tensor | None = None
    control_images: tuple[Any, ...] = ()


def step_callback(
    context: RenderContext, unpack: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Callable[..., dict[str, Any]]:
    """A diffusers `callback_on_step_end` that reports each step.

    unpack: turns the pipeline's latents into (1, C, h, w).
    """

    def report(pipeline: Any, index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        latents = kwargs["latents"]

        def preview() -> np.ndarray:
            spatial = unpack(latents) if unpack else latents
            if context.model.projection is None:
                raise RuntimeError("previews need the model's projection, see fit_projection")
            return project(spatial, context.model.projection)

        context.on_step(Step(index + 1, pipeline.num_timesteps, preview))
        return {}

    return report


def frames(image: Any) -> np.ndarray:
    """A PIL image as uint8 frames (1, H, W, 3)."""
    return np.asarray(image.convert("RGB"))[None]


def unit_pixels(image: Any) -> torch.Tensor:
    """An RGB image of PIL as float32 (3, H, W), 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def project(latents: torch.Tensor, projection: torch.Tensor) -> np.ndarray:
    """A cheap picture of latents (1, C, h, w), or of the middle one of (1, C, f, h, w).

    Returns uint8 (h, w, 3). projection: (C + 1, 3), as fit_projection gives it.
    """
    latents = latents[:, :, latents.shape[2] // 2] if latents.dim() == 5 else latents
    pixels = latents[0].float().cpu().permute(1, 2, 0)  # (h, w, C)
    ones = torch.ones(*pixels.shape[:2], 1)
    rgb = torch.cat([pixels, ones], dim=-1) @ projection
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def scaled_latents(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, ...) as the denoiser takes them, from what a VAE encodes to.

    config: the VAE's, or the VAE itself: a mean and a deviation per channel, or one shift and one
    scale.
    """
    if getattr(config, "latents_mean", None) is None:
        shift = getattr(config, "shift_factor", None) or 0.0
        scale = getattr(config, "scaling_factor", None) or 1.0  # FLUX.2's has neither
        return (latents - shift) * scale
    per_channel = (-1, *(1,) * (latents.dim() - 2))
    mean, std = (
        torch.as_tensor(values, device=latents.device, dtype=latents.dtype).view(per_channel)
        for values in (config.latents_mean, config.latents_std)
    )
    return (latents - mean) / std


def fit_projection(vae: Any, device: torch.device) -> torch.Tensor:
    """The linear map from scaled latents to RGB, (C + 1, 3), of a VAE that sits on `device`.

    Fitted to what the VAE makes of plain colours, so that it needs no table of models.
    """
    levels = torch.tensor([0.0, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels)  # (27, 3)
    images = (colours * 2 - 1)[:, :, None, None].expand(-1, -1, 64, 64)
    frames_axis = next(vae.parameters()).dim() == 5  # a VAE of videos; a picture is one frame
    images = images[:, :, None] if frames_axis else images
    latents = vae.encode(images.to(device, vae.dtype)).latent_dist.mode()
    # some VAEs have their statistics in the checkpoint
    statistics = vae if "latents_mean" in dict(vae.named_buffers()) else vae.config
    means = scaled_latents(statistics, latents.float().cpu()).flatten(2).mean(dim=2)  # (27, C)
    design = torch.cat([means, torch.ones(len(means), 1)], dim=1)
    # A little weight on staying small: 27 colours do not pin down 16 channels.
    ridge = 1e-3 * torch.eye(design.shape[1])
    return torch.linalg.solve(design.T @ design + ridge, design.T @ colours)
