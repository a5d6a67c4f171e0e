"""Lumina Image 2.0.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.prompts import floor_side
from ..core.specs import Defaults, LoraLayout, ModelSpec, Quantizing

TOKENS = 256
# The trainer puts it before the negative prompt too; diffusers would not.
PREFIX = (
    "You are an assistant designed to generate superior images with the superior degree of "
    "image-text alignment based on textual prompts or user prompts. <Prompt Start> "
)
GRID = 16  # px


def check_lumina2(settings: Any) -> None:
    """Raises InvalidInputError for sides that the trainer fails on: off the grid, after the 8."""
    for name in ("width", "height"):
        side = getattr(settings, name)
        if floor_side(side, 8) % GRID:
            raise InvalidInputError(
                f"{name}={side}; the trainer makes it {floor_side(side, 8)} and then fails, since "
                f"lumina2 needs multiples of {GRID}: use {floor_side(side, GRID)} or "
                f"{floor_side(side, GRID) + GRID}"
            )


def load_lumina2(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint; the tokenizer by its own configuration, as the trainer's."""
    import diffusers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(source), subfolder="tokenizer", trust_remote_code=False
    )
    pipeline_class: Any = getattr(diffusers, spec.pipeline)
    pipeline = pipeline_class.from_pretrained(
        str(source), tokenizer=None, use_safetensors=True, torch_dtype=dtype
    )
    return pipeline.components | {"tokenizer": tokenizer}


def render_lumina2(context: Any) -> Any:
    """Lumina 2 frames, uint8 (1, H, W, 3).

    The pipeline's own guidance, which keeps the length of the positive prediction per row of
    latents, is the trainer's. The trainer names shift 6.0 and loses it: the grid is unshifted.
    """
    import diffusers

    from ._flow import sigmas_left, start_latents
    from ._render import frames, step_callback
    from ._schedulers import flow_match_scheduler, mean_flow_scheduler

    settings, model = context.settings, context.model
    mean_flow = settings.sampler == "mean_flow"
    pipeline: Any = diffusers.Lumina2Pipeline(
        **model.parts(), scheduler=mean_flow_scheduler() if mean_flow else flow_match_scheduler({})
    )
    with context.place(pipeline):
        embeds, mask = _encode(context, settings.prompt)
        negative, negative_mask = _encode(context, settings.negative_prompt)
        sigmas = sigmas_left(settings)
        pipeline.set_progress_bar_config(disable=True)
        output = pipeline(
            prompt_embeds=embeds,
            prompt_attention_mask=mask,
            negative_prompt_embeds=negative,
            negative_prompt_attention_mask=negative_mask,
            height=settings.height,
            width=settings.width,
            sigmas=sigmas,
            guidance_scale=settings.guidance_scale,
            generator=context.generator,
            latents=start_latents(context, float(sigmas[0])) if settings.denoise < 1 else None,
            callback_on_step_end=step_callback(context),
        )
        return frames(output.images[0])


def _encode(context: Any, prompt: str) -> tuple[Any, Any]:
    # the last but one hidden state (1, 256, C), and the mask of what is no padding (1, 256)
    model = context.model
    tokens = model.tokenizers["tokenizer"](
        [PREFIX + prompt],
        padding="max_length",
        padding_side="right",
        max_length=TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(model.device)
    output = model.modules["text_encoder"](
        tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
    )
    return output.hidden_states[-2].to(model.device, model.dtype), tokens.attention_mask


def build_tiny_lumina2(seed: int) -> dict[str, Any]:
    """The parts of a toy Lumina 2, real classes."""
    from diffusers import Lumina2Transformer2DModel

    from . import _tiny, _tiny_gemma

    transformer = Lumina2Transformer2DModel(
        hidden_size=64,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        axes_dim_rope=(4, 6, 6),
        cap_feat_dim=32,
    )
    return {
        "tokenizer": _tiny_gemma.gemma_tokenizer_files(),
        "text_encoder": _tiny_gemma.gemma2(seed),
        "transformer": _tiny.fill(transformer, seed),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler("FlowMatchEulerDiscreteScheduler", shift=6.0),
    }


LUMINA2 = ModelSpec(
    id="lumina2",
    title="Lumina Image 2.0",
    task="text-to-image",
    arch="lumina2",
    repo_id="Alpha-VLLM/Lumina-Image-2.0",
    pipeline="Lumina2Pipeline",
    other_pipelines=("Lumina2Text2ImgPipeline",),
    latent_channels=16,
    multiple_of=GRID,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch", "mean_flow"),
    lora=LoraLayout(
        prefixes=(("transformer", "transformer"),),
        separator=".",
        alpha=False,
        targets=("layers.", "noise_refiner.", "context_refiner."),
        base_model="lumina2",
    ),
    source="ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(encoders=("text_encoder",), encoders_by="qtype"),
    load=load_lumina2,
    check=check_lumina2,
    notes=(
        "Its checkpoint's scheduler has shift 6.0; the trainer samples at 1.0.",
        "The system prompt goes before the negative prompt too, even an empty one; diffusers adds "
        "it to the positive one only.",
        "Gemma 2 attends without its soft cap, as transformers before 5.23 do by SDPA.",
        "Guidance is rescaled to the norm of the positive prediction, per row of latents.",
        "256 tokens, the last but one hidden state; sides must be multiples of 16 px.",
    ),
    render=render_lumina2,
    build_tiny=build_tiny_lumina2,
)
MODELS = (LUMINA2,)
