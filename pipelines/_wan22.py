"""What sets Wan 2.2 apart from 2.1: a first frame given, two experts, a timestep per token.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/wan22/wan22_pipeline.py
and toolkit/models/wan21/wan_utils.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ._render import RenderContext
from ._wan import FRAMES_PER_LATENT, Keep, Predict, latent_scale

BOUNDARY = 875  # from this timestep up the high-noise expert works, for text and pictures alike


# --- the first frame -------------------------------------------------------------------------


def first_frame(context: RenderContext) -> torch.Tensor:
    """The control image as the clip's first frame: (1, 3, 1, H, W) from -1 to 1."""
    settings, model = context.settings, context.model
    picture = context.control_images[0].convert("RGB")
    picture = picture.resize((settings.width, settings.height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None, :, None]
    pixels = pixels.to(torch.float32) / 255
    return pixels.to(model.device, model.dtype) * 2.0 - 1.0


def encoded(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """A clip (1, 3, F, H, W) in scaled latents, drawn from what the VAE gives.

    The noise comes from the device's own generator, as in the trainer.
    """
    latents = vae.encode(video).latent_dist.sample()
    mean, scale = latent_scale(vae, latents)
    return (latents - mean) * scale


def condition(context: RenderContext, vae: Any) -> torch.Tensor:
    """What the 14B is shown beside the latents: (1, 20, f, h, w).

    A mask of the frames that are given, four for each latent, and the latents of the first frame
    followed by grey ones.
    """
    frame = first_frame(context)
    rest = frame.new_zeros(*frame.shape[:2], context.settings.num_frames - 1, *frame.shape[3:])
    latents = encoded(vae, torch.cat([frame, rest], dim=2))
    mask = latents.new_zeros(1, FRAMES_PER_LATENT, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


def begun(
    context: RenderContext, vae: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 5B's latents with the control image as the first, and 0 there and 1 elsewhere.

    Both in the model's precision; the mask is (1, 1, f, h, w).
    """
    given = encoded(vae, first_frame(context))
    latents = latents.to(given.dtype)
    latents[:, :, :1] = given
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, :1] = 0
    return latents, mask


# --- the networks ----------------------------------------------------------------------------


def by_experts(pipeline: Any, shown: torch.Tensor | None) -> Predict:
    """What the two networks of the 14B predict, each in its part of the schedule.

    shown: as `condition` gives it, or None.
    """

    def predict(seen: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        high = timestep >= BOUNDARY
        expert = pipeline.transformer if high else pipeline.transformer_2
        return expert(
            hidden_states=seen if shown is None else torch.cat([seen, shown], dim=1),
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]

    return predict


def by_tokens(pipeline: Any, mask: torch.Tensor) -> Predict:
    """What the 5B predicts, told a timestep for each token: 0 where the mask is.

    They are in the mask's precision: 999 is 1000 in bf16.
    """

    def predict(seen: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        times = (mask[0, 0, :, ::2, ::2] * timestep).flatten()[None]
        return pipeline.transformer(
            hidden_states=seen, timestep=times, encoder_hidden_states=text, return_dict=False
        )[0]

    return predict


def keeping(mask: torch.Tensor) -> Keep:
    """Latents of the next step: those before the step where the mask is 0."""

    def keep(seen: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return seen * (1 - mask) + latents * mask

    return keep
