"""Wan 2.1: clips from a prompt, and from a prompt and a picture.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/wan21/
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.specs import ControlImages, Defaults, ModelSpec, Quantizing
from ._wan_spec import ELSEWHERE, LORA, NOTES, TILING, check_saving_frames, check_sides

GRID = 16  # px
SHIFT = 3.0  # of the noise levels


def load_wan21(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint; `processor` is what makes CLIP's pixels, where it has a CLIP."""
    import diffusers
    import transformers

    from ._wan import load_umt5
    from ._wan_image import read_clip_pixels

    def read(module_class: Any, name: str) -> Any:
        return module_class.from_pretrained(
            str(source), subfolder=name, torch_dtype=dtype, use_safetensors=True
        )

    parts = load_umt5(spec, source, dtype) | {
        "transformer": read(diffusers.WanTransformer3DModel, "transformer"),
        "vae": read(diffusers.AutoencoderKLWan, "vae"),
    }
    if "image_encoder" in spec.components:
        parts["image_encoder"] = read(transformers.CLIPVisionModel, "image_encoder")
        parts["processor"] = read_clip_pixels(source / "image_processor")
    return parts


def render_wan21(context: Any) -> Any:
    """Wan 2.1 frames, uint8 (F, H, W, 3)."""
    import diffusers

    from . import _wan

    settings, profile = context.settings, context.profile
    if settings.low_vram:
        context = _wan.floored_frames(context)
    pipeline: Any = diffusers.WanPipeline(
        **context.model.parts(),
        scheduler=_wan.wan_scheduler(profile, settings.steps, SHIFT, SHIFT),
    )

    def predict(latents: Any, timestep: Any, text: Any) -> Any:
        return pipeline.transformer(
            hidden_states=latents,
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]

    with _wan.placed(context, pipeline):
        texts = _wan.guided_texts(context)
        latents = _wan.noise(context, context.model.spec.latent_channels)
        latents = _wan.denoised(context, pipeline, latents, texts, predict)
        return _wan.decoded(context, pipeline, latents, _wan.is_tiled(context))


def render_wan21_i2v(context: Any) -> Any:
    """Wan 2.1 frames that start from the control image, uint8 (F, H, W, 3)."""
    import diffusers
    import torch

    from . import _wan, _wan_image

    settings, profile, parts = context.settings, context.profile, context.model.parts()
    pixels = parts.pop("processor")
    dtype = torch.bfloat16 if settings.low_vram else torch.float32
    pipeline: Any = diffusers.WanImageToVideoPipeline(
        **parts, scheduler=_wan.wan_scheduler(profile, settings.steps, SHIFT, SHIFT)
    )
    with _wan.placed(context, pipeline):
        texts = _wan.guided_texts(context)
        image = _wan_image.fitted(context)
        seen = _wan_image.clip_hidden(context, image, pixels)
        latents = _wan.noise(context, context.model.spec.latent_channels, dtype)
        behind = _wan_image.first_frame_condition(context, pipeline.vae, image, dtype)

        def predict(latents: Any, timestep: Any, text: Any) -> Any:
            return pipeline.transformer(
                hidden_states=torch.cat([latents, behind.to(latents.dtype)], dim=1),
                timestep=timestep.expand(1),
                encoder_hidden_states=text,
                encoder_hidden_states_image=seen,
                return_dict=False,
            )[0]

        latents = _wan.denoised(context, pipeline, latents, texts, predict)
        return _wan.decoded(context, pipeline, latents)


def build_tiny_wan21(seed: int, layers: int = 2) -> dict[str, Any]:
    """The parts of a toy Wan 2.1, real classes."""
    from ._tiny_wan import wan_parts

    return wan_parts(seed, num_layers=layers)


def build_tiny_wan21_i2v(seed: int, layers: int = 2) -> dict[str, Any]:
    """The parts of a toy Wan 2.1 that starts from a picture, real classes."""
    from . import _tiny_wan

    parts = _tiny_wan.wan_parts(
        seed,
        num_layers=layers,
        in_channels=36,
        image_dim=_tiny_wan.CLIP_WIDTH,
        added_kv_proj_dim=32,
    )
    return parts | {
        "image_encoder": _tiny_wan.clip_vision(seed),
        "image_processor": _tiny_wan.clip_image_processor_files(),
    }


WAN21_1B = ModelSpec(
    id="wan21_1b",
    title="Wan 2.1 1.3B",
    task="video",
    arch="wan21:1b",
    repo_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    pipeline="WanPipeline",
    latent_channels=16,
    multiple_of=GRID,
    defaults=Defaults(
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        sampler="flowmatch",
        num_frames=41,
        fps=16,
    ),
    samplers=("flowmatch",),
    lora=LORA,
    source="ostris/ai-toolkit@27a03a91 toolkit/models/wan21/wan21.py::Wan21",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        encoders_by="qtype",
        offloads=("transformer", "text_encoder"),
    ),
    elsewhere=ELSEWHERE,
    load=load_wan21,
    check=check_sides(GRID),
    notes=(
        *NOTES,
        "The number of frames becomes 4 n + 1 and sides must be multiples of 16 px.",
        "`low_vram` is off, as the trainer's form leaves it for this model. With it, 4 n frames "
        "become 4 n - 3 instead of 4 n + 1, and trainers from 0.10.22 on decode in tiles of 256 "
        "px, which `vae_tiling` does alone.",
    ),
    switches=(TILING,),
    render=render_wan21,
    build_tiny=build_tiny_wan21,
)
WAN21_14B = replace(
    WAN21_1B,
    id="wan21_14b",
    title="Wan 2.1 14B",
    arch="wan21:14b",
    repo_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    build_tiny=lambda seed: build_tiny_wan21(seed, layers=3),
)
WAN21_I2V_14B = replace(
    WAN21_1B,
    id="wan21_i2v_14b",
    title="Wan 2.1 image to video 14B, 720p",
    arch="wan21_i2v:14b",
    repo_id="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    pipeline="WanImageToVideoPipeline",
    source="ostris/ai-toolkit@27a03a91 toolkit/models/wan21/wan21_i2v.py::Wan21I2V",
    components=("text_encoder", "image_encoder", "transformer", "vae"),
    control_images=ControlImages(1, 1),
    check=check_saving_frames,
    switches=(),
    notes=(
        *NOTES,
        "The picture is stretched to the sample's size (Lanczos), and CLIP sees the stretched one; "
        "its last but one hidden state counts.",
        "CLIP's pixels are made by Pillow in trainers before 0.9.1 and by torchvision since: three "
        "quarters of them differ.",
        "The first frame's latents are the VAE's mode, not drawn.",
        "`low_vram` is off, as the trainer's form leaves it for this model. With it, the noise is "
        "drawn in bf16 and the first frame's latents are rounded to it; no VAE works in tiles. "
        "Trainers from 0.7.19 to 0.12.26 draw that and then fail before they write a file.",
        "The number of frames becomes 4 n + 1, and sides are floored to multiples of 16 px.",
    ),
    render=render_wan21_i2v,
    build_tiny=build_tiny_wan21_i2v,
)
WAN21_I2V_14B480P = replace(
    WAN21_I2V_14B,
    id="wan21_i2v_14b480p",
    title="Wan 2.1 image to video 14B, 480p",
    arch="wan21_i2v:14b480p",
    repo_id="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    build_tiny=lambda seed: build_tiny_wan21_i2v(seed, layers=1),
)
MODELS = (WAN21_1B, WAN21_14B, WAN21_I2V_14B, WAN21_I2V_14B480P)
