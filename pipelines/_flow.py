"""Where a flow model's denoising starts, and the loop of those that pack latents as FLUX does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ._render import frames, scaled_latents, step_callback


def sigmas_left(settings: Any) -> np.ndarray:
    """The noise levels of the steps that are run, before any shift: from 1 down to 1 / steps.

    With denoise below 1 the first ones are left out, as image-to-image pipelines do.
    """
    sigmas = np.linspace(1.0, 1 / settings.steps, settings.steps)
    skipped = settings.steps - min(settings.steps * settings.denoise, settings.steps)
    return sigmas[int(skipped) :]


def start_latents(context: Any, sigma: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The request's latents, scaled, with noise of this level: (1, C, H/8, W/8).

    dtype: of the latents that are denoised, if it is not the model's.
    """
    model, dtype = context.model, dtype or context.model.dtype
    latents = context.latents.to(model.device, dtype)
    latents = scaled_latents(model.modules["vae"].config, latents)
    noise = torch.randn(latents.shape, generator=context.generator, dtype=dtype)
    return (sigma * noise.to(model.device) + (1 - sigma) * latents).to(dtype)


def set_flux_timesteps(scheduler: Any, settings: Any, device: Any) -> torch.Tensor:
    """Sets the scheduler of FLUX for a picture of this size, and returns its timesteps."""
    config = scheduler.config
    tokens = (settings.height // 16) * (settings.width // 16)
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    mu = tokens * slope + (config.base_shift - slope * low)
    scheduler.set_timesteps(sigmas=sigmas_left(settings), device=device, mu=mu)
    return scheduler.timesteps


def start_packed(context: Any, pipeline: Any) -> torch.Tensor:
    """What a FLUX pipeline starts from, packed: (1, tokens, 4 C); its timesteps are set."""
    settings, model = context.settings, context.model
    if settings.denoise < 1:
        latents = start_latents(context, float(pipeline.scheduler.sigmas[0]))
    else:
        sides = 2 * (settings.height // 16), 2 * (settings.width // 16)
        shape = (1, model.spec.latent_channels, *sides)
        latents = torch.randn(shape, generator=context.generator, dtype=model.dtype)
    return pipeline._pack_latents(latents.to(model.device), *latents.shape)


def packed_frames(context: Any, pipeline: Any, predict: Callable[[Any, Any], Any]) -> np.ndarray:
    """Frames, uint8 (1, H, W, 3), of a pipeline that packs latents and decodes as FLUX does.

    predict: (packed latents, time of 0 to 1) -> what the network predicts. Everything is placed.
    """
    settings, scheduler = context.settings, pipeline.scheduler

    def unpack(packed: Any) -> Any:
        size = settings.height, settings.width
        return pipeline._unpack_latents(packed, *size, pipeline.vae_scale_factor)

    timesteps = set_flux_timesteps(scheduler, settings, context.model.device)
    pipeline._num_timesteps = len(timesteps)
    latents = start_packed(context, pipeline)
    report = step_callback(context, unpack)
    for index, timestep in enumerate(timesteps):
        time = timestep.expand(1).to(latents.dtype) / 1000
        latents = scheduler.step(predict(latents, time), timestep, latents, return_dict=False)[0]
        report(pipeline, index, timestep, {"latents": latents})
    config = pipeline.vae.config
    unscaled = unpack(latents) / config.scaling_factor + config.shift_factor
    image = pipeline.vae.decode(unscaled, return_dict=False)[0]
    return frames(pipeline.image_processor.postprocess(image, output_type="pil")[0])
