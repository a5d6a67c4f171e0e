"""Flex.2, a FLUX whose network also takes an inpainting and a control picture; text only here.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/flex2/pipeline.py::Flex2Pipeline
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.specs import ModelSpec
from .flux import FLUX_DEV, build_tiny_flux, encode_flux

# of one packed latent: the picture, then picture and mask to inpaint, then the control picture
PACKED = 64
MASK = 4
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

    from ._render import frames
    from ._schedulers import flux_scheduler

    pipeline: Any = diffusers.FluxControlPipeline(
        **context.model.parts(), scheduler=flux_scheduler(context.settings.sampler)
    )
    with context.place(pipeline):
        latents = _denoise(context, pipeline)
        vae = pipeline.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        return frames(pipeline.image_processor.postprocess(image, output_type="pil")[0])


def _denoise(context: Any, pipeline: Any) -> Any:
    # latents (1, 16, H/8, W/8)
    import torch

    from ._render import step_callback

    settings, model = context.settings, context.model
    height, width = settings.height, settings.width

    def unpack(packed: Any) -> Any:
        return pipeline._unpack_latents(packed, height, width, pipeline.vae_scale_factor)

    embeds, pooled = encode_flux(context)
    timesteps = _set_timesteps(pipeline.scheduler, settings, model.device)
    pipeline._num_timesteps = len(timesteps)
    latents, image_ids = _start(context, pipeline)
    fixed = {
        "encoder_hidden_states": embeds,
        "pooled_projections": pooled,
        "txt_ids": torch.zeros(embeds.shape[1], 3, device=model.device, dtype=model.dtype),
        "img_ids": image_ids,
        "guidance": torch.tensor([settings.guidance_scale], dtype=torch.float32).to(model.device),
        "return_dict": False,
    }
    no_pictures = _no_pictures(latents)
    report = step_callback(context, unpack)
    for index, timestep in enumerate(timesteps):
        prediction = pipeline.transformer(
            hidden_states=torch.cat([latents, no_pictures], dim=2),
            timestep=timestep.expand(1).to(latents.dtype) / 1000,
            **fixed,
        )[0]
        latents = pipeline.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        report(pipeline, index, timestep, {"latents": latents})
    return unpack(latents)


def _set_timesteps(scheduler: Any, settings: Any, device: Any) -> Any:
    from ._flow import sigmas_left

    config = scheduler.config
    tokens = (settings.height // 16) * (settings.width // 16)
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    mu = tokens * slope + (config.base_shift - slope * low)
    scheduler.set_timesteps(sigmas=sigmas_left(settings), device=device, mu=mu)
    return scheduler.timesteps


def _start(context: Any, pipeline: Any) -> tuple[Any, Any]:
    # packed latents (1, tokens, 64) and where each is in the picture (tokens, 3)
    from ._flow import start_latents

    settings, model = context.settings, context.model
    height, width = settings.height, settings.width
    if settings.denoise == 1:
        return pipeline.prepare_latents(
            1, PACKED // 4, height, width, model.dtype, model.device, context.generator
        )
    latents = start_latents(context, float(pipeline.scheduler.sigmas[0]))
    packed = pipeline._pack_latents(latents, *latents.shape)
    return pipeline.prepare_latents(
        1, PACKED // 4, height, width, model.dtype, model.device, None, packed
    )


def _no_pictures(latents: Any) -> Any:
    # nothing to inpaint in all of the picture, and nothing to follow: (1, tokens, 132)
    import torch

    nothing, everywhere = torch.zeros_like(latents), torch.ones_like(latents[..., :MASK])
    return torch.cat([nothing, everywhere, nothing], dim=2)


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
        "diffusers has no pipeline for it: FluxPipeline derives 49 latent channels.",
        "Guidance is embedded only, and the negative prompt is ignored.",
        "Sides are floored to 16 px; other tools take 32.",
    ),
    lora=replace(FLUX_DEV.lora, base_model="flex2"),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/flex2/flex2.py::Flex2",
    load=load_flex2,
    render=render_flex2,
    build_tiny=build_tiny_flex2,
)
MODELS = (FLEX2,)
