"""FLUX.1 Kontext, which edits a picture: FLUX with the picture's latents behind its own.

Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/flux_kontext/flux_kontext.py::FluxKontextModel
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.specs import BaseLoras, ControlImages
from .flux import FLUX_DEV, NOTES, build_tiny_flux, flux_inputs


def render_flux_kontext(context: Any) -> Any:
    """FLUX.1 Kontext frames, uint8 (1, H, W, 3). guidance_scale is only embedded."""
    import diffusers

    from ._flow import packed_frames
    from ._schedulers import flux_scheduler

    pipeline: Any = diffusers.FluxKontextPipeline(
        **context.model.parts(), scheduler=flux_scheduler(context.settings.sampler)
    )
    with context.place(pipeline):
        return packed_frames(context, pipeline, _prediction(context, pipeline))


def _prediction(context: Any, pipeline: Any) -> Any:
    # (packed latents, time) -> what the network predicts
    import torch

    fixed = flux_inputs(context, pipeline)
    picture = _encode(context, pipeline)
    behind = fixed["img_ids"].clone()  # as large as what is drawn, and told apart by the first
    behind[:, 0] = 1
    fixed["img_ids"] = torch.cat([fixed["img_ids"], behind])

    def predict(latents: Any, time: Any) -> Any:
        given = torch.cat([latents, picture], dim=1)
        predicted = pipeline.transformer(hidden_states=given, timestep=time, **fixed)[0]
        return predicted[:, : latents.shape[1]]

    return predict


def _encode(context: Any, pipeline: Any) -> Any:
    """The control image's packed latents (1, tokens, 64), the likeliest of them."""
    from ._control_images import stretched_off_grid
    from ._render import scaled_latents

    settings, vae = context.settings, pipeline.vae
    image = stretched_off_grid(context.control_images[0], settings)
    # which takes it to the grid, with another filter
    pixels = pipeline.image_processor.preprocess(image, settings.height, settings.width)
    posterior = vae.encode(pixels.to(context.model.device, context.model.dtype)).latent_dist
    latents = scaled_latents(vae.config, posterior.mode())
    return pipeline._pack_latents(latents, *latents.shape)


FLUX_KONTEXT = replace(
    FLUX_DEV,
    id="flux_kontext",
    title="FLUX.1 Kontext dev",
    task="edit",
    arch="flux_kontext",
    repo_id="black-forest-labs/FLUX.1-Kontext-dev",
    pipeline="FluxKontextPipeline",
    samplers=("flowmatch",),
    lora=replace(FLUX_DEV.lora, base_model="flux.1_kontext"),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/flux_kontext/"
    "flux_kontext.py::FluxKontextModel",
    base_loras=BaseLoras(),
    control_images=ControlImages(1, 1),
    render=render_flux_kontext,
    build_tiny=lambda seed: build_tiny_flux(seed, double=3, single=1),
    notes=(
        "The control image is stretched to the sample's size, whatever its shape. Other tools keep "
        "its shape, and draw one of Kontext's own sizes (about a million pixels).",
        "It is resized bilinearly with Pillow, which smooths where it shrinks; sides off the grid "
        "of 16 px are cut to it afterwards, with another filter (Lanczos).",
        "Its latents are the VAE's mode, not drawn, so that they use up no random numbers.",
        *NOTES,
    ),
)
MODELS = (FLUX_KONTEXT,)
