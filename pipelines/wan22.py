"""Wan 2.2: the 14B of two experts, from text or from a picture, and the 5B from either.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/wan22/
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.specs import ControlImages, Defaults, ModelSpec, Quantizing
from ._wan_spec import ELSEWHERE, LORA, NOTES, TILING

UNIPC_SHIFT = 3.0  # of the 14B
SHIFT = 5.0  # of the 5B; newer trainers take its schedule for the 14B as well
WAN21_VAE = "ai-toolkit/wan2.1-vae"
VAE_5B = {
    "decoder_base_dim": 8,
    "z_dim": 48,
    "latents_mean": [0.02 * (index % 9 - 4) for index in range(48)],
    "latents_std": [0.7 + 0.05 * (index % 7) for index in range(48)],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


def load_wan22(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint; the text encoder and the 14B's VAE may lie elsewhere."""
    import diffusers

    from ._loading import part_path
    from ._wan import load_umt5

    reading: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    networks = {
        name: diffusers.WanTransformer3DModel.from_pretrained(
            str(source), subfolder=name, **reading
        )
        for name in spec.lora.denoisers
    }
    vae = diffusers.AutoencoderKLWan.from_pretrained(part_path(spec, source, "vae"), **reading)
    return load_umt5(spec, source, dtype) | networks | {"vae": vae}


def render_wan22_t2v(context: Any) -> Any:
    """Frames of the 14B, uint8 (F, H, W, 3), from text."""
    from . import _wan, _wan22

    pipeline = _pipeline(context, UNIPC_SHIFT)
    with _wan.placed(context, pipeline):
        texts = _wan.guided_texts(context)
        latents = _wan.noise(context, context.model.spec.latent_channels)
        predict = _wan22.by_experts(pipeline, None)
        latents = _wan.denoised(context, pipeline, latents, texts, predict)
        return _wan.decoded(context, pipeline, latents, _wan.is_tiled(context))


def render_wan22_i2v(context: Any) -> Any:
    """Frames of the 14B, uint8 (F, H, W, 3), that go on from a picture."""
    from . import _wan, _wan22

    context = _wan.floored_frames(context)
    pipeline = _pipeline(context, UNIPC_SHIFT)
    with _wan.placed(context, pipeline):
        texts = _wan.guided_texts(context)
        latents = _wan.noise(context, context.model.spec.latent_channels)
        latents = latents.to(context.model.dtype).float()
        shown = _wan22.condition(context, pipeline.vae)
        predict = _wan22.by_experts(pipeline, shown)
        latents = _wan.denoised(context, pipeline, latents, texts, predict)
        return _wan.decoded(context, pipeline, latents)


def render_wan22_5b(context: Any) -> Any:
    """Frames of the 5B, uint8 (F, H, W, 3), from text, or going on from a picture."""
    import torch

    from . import _wan, _wan22

    context = _wan.floored_frames(context)
    pipeline = _pipeline(context, SHIFT)
    with _wan.placed(context, pipeline):
        texts = _wan.guided_texts(context)
        latents = _wan.noise(context, context.model.spec.latent_channels)
        mask = torch.ones_like(latents[:, :1])
        if context.control_images:
            latents, mask = _wan22.begun(context, pipeline.vae, latents)
        predict, keep = _wan22.by_tokens(pipeline, mask), _wan22.keeping(mask)
        latents = _wan.denoised(context, pipeline, latents.float(), texts, predict, keep)
        return _wan.decoded(context, pipeline, latents, _wan.is_tiled(context))


def _pipeline(context: Any, unipc_shift: float) -> Any:
    import diffusers

    from ._wan import wan_scheduler

    steps = context.settings.steps
    scheduler = wan_scheduler(context.profile, steps, unipc_shift, SHIFT)
    return diffusers.WanPipeline(**context.model.parts(), scheduler=scheduler)


def build_tiny_wan22_14b(seed: int, **transformer: Any) -> dict[str, Any]:
    """The parts of a toy of the 14B, real classes. transformer: what both networks have."""
    from ._tiny_wan import wan_parts, wan_transformer

    second = wan_transformer(seed + 1, **transformer)
    return wan_parts(seed, **transformer) | {"transformer_2": second}


def build_tiny_wan22_5b(seed: int) -> dict[str, Any]:
    """The parts of a toy of the 5B, real classes."""
    from ._tiny_wan import wan_parts

    return wan_parts(seed, vae=VAE_5B, in_channels=48, out_channels=48)


_TILED = (
    "The trainer's form turns low_vram on: since 0.10.22 the VAE then decodes in tiles of 256 px, "
    "so larger frames differ from those of a job without it. low_vram changes nothing else here; "
    "`vae_tiling` does the same.",
)
_PICTURE = (
    "The picture's latents are drawn by the device's own generator, the clip's noise by the "
    "CPU's; only on the CPU both are one.",
)
WAN22_14B_T2V = ModelSpec(
    id="wan22_14b_t2v",
    title="Wan 2.2 14B",
    task="video",
    arch="wan22_14b:t2v",
    repo_id="ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16",
    pipeline="WanPipeline",
    latent_channels=16,
    multiple_of=16,
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
    lora=replace(LORA, base_model="wan_2.2_14b", experts=("transformer", "transformer_2")),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/wan22/",
    components=("text_encoder", "transformer", "transformer_2", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        encoders_by="qtype",
        keeps=("condition_embedder*", "proj_out*"),
        keeps_since="wan22_ends_in_full_precision",
        offloads=("transformer", "transformer_2", "text_encoder"),
    ),
    elsewhere=(*ELSEWHERE, ("vae", WAN21_VAE)),
    notes=(
        "The high-noise expert works down to timestep 875, also from a picture, where the "
        "released pipeline changes at 900; one guidance holds for both.",
        "Newer trainers shift by 5, older ones by 3.",
        *NOTES,
        *_TILED,
    ),
    low_vram=True,
    switches=(TILING,),
    load=load_wan22,
    render=render_wan22_t2v,
    build_tiny=build_tiny_wan22_14b,
)
WAN22_14B_I2V = replace(
    WAN22_14B_T2V,
    id="wan22_14b_i2v",
    title="Wan 2.2 I2V 14B",
    arch="wan22_14b_i2v",
    repo_id="ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16",
    pipeline="WanImageToVideoPipeline",
    other_pipelines=("WanPipeline",),
    control_images=ControlImages(required=1, most=1),
    switches=(),
    notes=(
        *WAN22_14B_T2V.notes[:-1],
        "The clip's noise is rounded to the model's precision before the first step.",
        *_PICTURE,
        "The VAE never works in tiles, whatever low_vram says.",
    ),
    render=render_wan22_i2v,
    build_tiny=lambda seed: build_tiny_wan22_14b(seed, in_channels=36),
)
WAN22_5B = replace(
    WAN22_14B_T2V,
    id="wan22_5b",
    title="Wan 2.2 TI2V 5B",
    arch="wan22_5b",
    repo_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    latent_channels=48,
    multiple_of=32,
    defaults=replace(WAN22_14B_T2V.defaults, width=768, height=768, num_frames=121, fps=24),
    lora=replace(LORA, base_model="wan_2.2_5b"),
    components=("text_encoder", "transformer", "vae"),
    quantizing=replace(WAN22_14B_T2V.quantizing, offloads=("transformer", "text_encoder")),
    elsewhere=ELSEWHERE,
    control_images=ControlImages(most=1),
    notes=(
        "A shift of 5 in all versions.",
        *NOTES,
        "From a picture, in bf16, timesteps above 256 are told with rounding (999 as 1000), and "
        "the first latent is put back after each step.",
        *_PICTURE,
        *_TILED,
    ),
    render=render_wan22_5b,
    build_tiny=build_tiny_wan22_5b,
)
MODELS = (WAN22_14B_T2V, WAN22_14B_I2V, WAN22_5B)
