"""Flex.2, a FLUX whose network also takes a picture to paint into or one to follow.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/flex2/pipeline.py::Flex2Pipeline
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.specs import BaseLoras, ControlImages, ModelSpec
from .flux import FLUX_DEV, build_tiny_flux, flux_inputs

# of one packed latent: the picture, then picture and mask to inpaint, then the control picture
PACKED = 64
MASK = 4
FOLLOW = 1  # the control_index of a picture that is followed
CHANNELS = PACKED + (PACKED + MASK) + PACKED


def load_flex2(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint. Raises CheckpointError for another FLUX's transformer."""
    import diffusers

    pipeline_class: Any = getattr(diffusers, spec.pipeline)
    pipeline = pipeline_class.from_pretrained(
        str(source), use_safetensors=True, torch_dtype=dtype, **dict.fromkeys(spec.clip_tokenizers)
    )
    found = pipeline.transformer.config.in_channels
    if found != CHANNELS:
        raise CheckpointError(
            f"the transformer in {source} takes {found} channels, Flex.2's {CHANNELS}; give a "
            f"folder as in {spec.repo_id}"
        )
    return pipeline.components


def render_flex2(context: Any) -> Any:
    """Flex.2 frames, uint8 (1, H, W, 3). guidance_scale is only embedded; nothing is negated."""
    import diffusers

    from ._flow import packed_frames
    from ._schedulers import flux_scheduler

    pipeline: Any = diffusers.FluxControlPipeline(
        **context.model.parts(), scheduler=flux_scheduler(context.settings.sampler)
    )
    with context.place(pipeline):
        return packed_frames(context, pipeline, _prediction(context, pipeline))


def _prediction(context: Any, pipeline: Any) -> Any:
    # (packed latents, time) -> what the network predicts
    import torch

    fixed = flux_inputs(context, pipeline)
    paint, follow = _pictures(context, pipeline)  # its noise is drawn before the latents'

    def predict(latents: Any, time: Any) -> Any:
        given = torch.cat([latents, paint, follow], dim=2)
        return pipeline.transformer(hidden_states=given, timestep=time, **fixed)[0]

    return predict


def _pictures(context: Any, pipeline: Any) -> tuple[Any, Any]:
    """What the network is given of pictures: to paint into (1, tokens, 68), to follow (1, t, 64).

    Without one there is nothing to keep in all of the picture, and nothing to follow.
    """
    import torch

    settings, model = context.settings, context.model
    tokens = (settings.height // 16) * (settings.width // 16)
    blank = torch.zeros(1, tokens, PACKED, device=model.device, dtype=model.dtype)
    paint, follow = torch.cat([blank, torch.ones_like(blank[..., :MASK])], dim=2), blank
    if context.control_images:
        (image,) = context.control_images
        latents = _encode(context, pipeline, image.convert("RGB"))
        if settings.control_index == FOLLOW:
            follow = _pack(pipeline, latents)
        else:
            paint = _pack(pipeline, _masked(latents, image))
    return paint, follow


def _encode(context: Any, pipeline: Any, image: Any) -> Any:
    """Scaled latents (1, 16, h, w) of a picture, drawn from what the VAE holds possible.

    Convolutions round otherwise on pixels that lie in memory channel by channel, as the trainer's
    do, than on those that lie as a picture's do.
    """
    from ._render import scaled_latents

    settings, vae = context.settings, pipeline.vae
    pixels = pipeline.image_processor.preprocess(image, settings.height, settings.width)
    pixels = pixels.contiguous()
    posterior = vae.encode(pixels.to(context.model.device, vae.dtype)).latent_dist
    return scaled_latents(vae.config, posterior.sample(generator=context.generator))


def _masked(latents: Any, image: Any) -> Any:
    """Latents with zeros where the RGBA image is transparent, and the mask of these: (1, 17, h, w).

    The alpha is resized from the picture's own size, in the precision of the latents.
    """
    import numpy as np
    import torch

    alpha = torch.from_numpy(np.asarray(image.getchannel("A")) / 255.0)[None, None]
    keep = torch.nn.functional.interpolate(
        alpha.to(latents.device, latents.dtype), size=latents.shape[2:], mode="bilinear"
    )
    return torch.cat([latents * keep, 1 - keep], dim=1)


def _pack(pipeline: Any, latents: Any) -> Any:
    return pipeline._pack_latents(latents, *latents.shape)


def build_tiny_flex2(seed: int) -> dict[str, Any]:
    """The parts of a toy Flex.2, real classes; as many blocks as the toy Flex.1."""
    from . import _tiny

    network = _tiny.flux_transformer(seed, True, 1, 3, in_channels=CHANNELS, out_channels=PACKED)
    return build_tiny_flux(seed) | {"transformer": network}


FLEX2 = replace(
    FLUX_DEV,
    id="flex2",
    title="Flex.2 preview",
    arch="flex2",
    repo_id="ostris/Flex.2-preview",
    pipeline="FluxControlPipeline",
    other_pipelines=("FluxPipeline", "Flex2Pipeline"),
    samplers=("flowmatch",),
    notes=(
        "The network takes 196 channels: latents, inpainting with its mask, control. Without "
        "pictures the mask is ones and the rest zeros; a mask of zeros would keep what is there.",
        "A picture's latents are drawn from the VAE's posterior, by the generator that then draws "
        "the noise to start from; tools that take its mode, or draw in the other order, differ.",
        "The alpha of a picture to paint into is not cut to 0 and 1 and is resized to the latents "
        "bilinearly, from the picture's own size; latents are faded by it, not the pixels.",
        "A picture without alpha can only be followed (control_index 1), one with alpha only be "
        "painted into (0): the trainer fails on the other two.",
        "diffusers has no pipeline for it: FluxPipeline derives 49 latent channels.",
        "Guidance is embedded only, and the negative prompt is ignored.",
        "Sides are floored to 16 px; other tools take 32.",
    ),
    lora=replace(FLUX_DEV.lora, base_model="flex2"),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/flex2/flex2.py::Flex2",
    base_loras=BaseLoras(),
    control_images=ControlImages(0, 1, index=True, alpha=True),
    load=load_flex2,
    render=render_flex2,
    build_tiny=build_tiny_flex2,
)
MODELS = (FLEX2,)
