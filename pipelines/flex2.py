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

    settings, model = context.settings, context.model
    embeds, pooled = encode_flux(context)
    size = settings.height // 16, settings.width // 16
    fixed = {
        "encoder_hidden_states": embeds,
        "pooled_projections": pooled,
        "txt_ids": torch.zeros(embeds.shape[1], 3, device=model.device, dtype=model.dtype),
        "img_ids": pipeline._prepare_latent_image_ids(1, *size, model.device, model.dtype),
        "guidance": torch.tensor([settings.guidance_scale], dtype=torch.float32).to(model.device),
        "return_dict": False,
    }

    def predict(latents: Any, time: Any) -> Any:
        given = torch.cat([latents, _no_pictures(latents)], dim=2)
        return pipeline.transformer(hidden_states=given, timestep=time, **fixed)[0]

    return predict


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
