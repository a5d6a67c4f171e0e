"""Qwen-Image and Qwen-Image 2512.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/qwen_image/qwen_image.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import Defaults, LoraLayout, ModelSpec, Quantizing

SCHEDULER = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
TILES = (
    "Since trainer 0.10.22 the VAE works in tiles of 256 px with `low_vram`, which is on in jobs "
    "of the trainer's form and in its examples. Other stacks decode at once, which shows where a "
    "side is above 256 px (32 levels)."
)


def check_steps(settings: Any) -> None:
    """Raises InvalidInputError for one step, of which the trainer makes a black picture.

    Its schedule is stretched to end at 0.02, which divides by zero if it starts where it ends.
    """
    if settings.steps < 2:
        raise InvalidInputError(f"steps={settings.steps}; Qwen-Image needs at least 2")


def load_qwen_image(
    spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint, without the vision tower that only editing needs.

    source: a folder; or the transformer in a file, with the rest in `folder`.
    """
    from ._loading import read_with_file

    pipeline = read_with_file(spec, source, dtype, folder, "QwenImageTransformer2DModel")
    pipeline.text_encoder.model.visual = None
    return pipeline.components


def render_qwen_image(context: Any) -> Any:
    """Qwen-Image frames, uint8 (1, H, W, 3). Above 1, guidance_scale is true guidance.

    The pipeline's own prompt template, its cut to 512 tokens and its guidance, which keeps the
    length of the positive prediction per token, are the trainer's.
    """
    import diffusers

    from ._qwen_vae import in_tiles, is_tiled, norms_of
    from ._render import frames, scaled_latents, step_callback
    from ._schedulers import flow_match_scheduler

    settings, model = context.settings, context.model
    pipeline: Any = diffusers.QwenImagePipeline(
        **model.parts(), scheduler=flow_match_scheduler(SCHEDULER)
    )
    vae = pipeline.vae
    tiles = in_tiles(vae, is_tiled(context))
    with norms_of(vae, context.profile), tiles, context.place(pipeline):
        arguments = {
            "prompt": settings.prompt,
            "negative_prompt": settings.negative_prompt,
            "true_cfg_scale": settings.guidance_scale,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.steps,
            "generator": context.generator,
            "callback_on_step_end": step_callback(
                context, lambda x: _unpack(pipeline, x, settings)
            ),
        }
        if settings.denoise < 1:
            start = context.latents.to(model.device, model.dtype)
            start = scaled_latents(pipeline.vae.config, start)
            arguments |= {"image": start, "strength": settings.denoise}
            pipeline = diffusers.QwenImageImg2ImgPipeline(**pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return frames(pipeline(**arguments).images[0])


def _unpack(pipeline: Any, latents: Any, settings: Any) -> Any:
    scale = pipeline.vae_scale_factor
    return pipeline._unpack_latents(latents, settings.height, settings.width, scale)[:, :, 0]


def build_tiny_qwen_image(seed: int, layers: int = 2, **config: Any) -> dict[str, Any]:
    """The parts of a toy Qwen-Image, real classes. config: of the transformer."""
    from diffusers import QwenImageTransformer2DModel

    from . import _tiny
    from ._qwen_vae import tiny_qwen_vae
    from ._tiny_qwen import WIDTH, qwen25_vl, qwen25_vl_tokenizer_files

    transformer = QwenImageTransformer2DModel(
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        **config,
    )
    return {
        "tokenizer": qwen25_vl_tokenizer_files(),
        "text_encoder": qwen25_vl(seed),
        "transformer": _tiny.fill(transformer, seed),
        "vae": tiny_qwen_vae(seed),
        "scheduler": _tiny.scheduler("FlowMatchEulerDiscreteScheduler", **SCHEDULER),
    }


QWEN_IMAGE = ModelSpec(
    id="qwen_image",
    title="Qwen-Image",
    task="text-to-image",
    arch="qwen_image",
    repo_id="Qwen/Qwen-Image",
    pipeline="QwenImagePipeline",
    latent_channels=16,
    multiple_of=32,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("transformer_blocks",),
        base_model="qwen_image",
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/qwen_image/",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        offloads=("transformer",),
        offloads_first=("text_encoder",),
    ),
    load=load_qwen_image,
    part_file="transformer",
    check=check_steps,
    notes=(
        "A negative prompt is always given, even an empty one; without one diffusers does not "
        "guide at all (11 levels, measured on the tiny model).",
        "The schedule ends at 0.02 before its last step, and shifts between 256 and 8192 tokens; "
        "FLUX's numbers are 44 levels off, no terminal 52.",
        "The text encoder is cast with its rotary buffers: 4 to 6 levels in bf16 otherwise.",
        "True guidance, rescaled per token to the length of the positive prediction; prompts are "
        "cut to 512 tokens behind the template.",
        "Trainers before 0.9.1 normalise in the VAE in bf16, later ones in fp32.",
        TILES,
    ),
    low_vram=True,
    render=render_qwen_image,
    build_tiny=build_tiny_qwen_image,
)
QWEN_IMAGE_2512 = replace(
    QWEN_IMAGE,
    id="qwen_image_2512",
    title="Qwen-Image 2512",
    arch="qwen_image:2512",
    repo_id="Qwen/Qwen-Image-2512",
    build_tiny=lambda seed: build_tiny_qwen_image(seed, layers=1),
)
MODELS = (QWEN_IMAGE, QWEN_IMAGE_2512)
