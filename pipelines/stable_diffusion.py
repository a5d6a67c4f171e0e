"""Stable Diffusion 1.5 and SDXL.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import BaseLoras, Defaults, LoraLayout, ModelSpec, Quantizing

SAMPLERS = (
    "ddpm", "ddim", "pndm", "lms", "k_lms", "euler", "k_euler", "euler_a", "dpmsolver++",
    "k_dpmsolver++", "dpmsingle", "heun", "dpm_2", "dpm_2_a", "lcm", "custom_lcm", "mean_flow",
    "flowmatch",
)  # fmt: skip
TIMESTEPS = 1000
LORA_ROUNDING = (
    "In bf16, loading a LoRA through PEFT rounds its delta before it is added: 5 to 30 levels off."
)
CPU_NOISE = (
    "All noise comes from the CPU's generator, and the default sampler draws some at every step: "
    "from a GPU's, or with another sampler, the same seed is another picture."
)
PLAIN_PROMPTS = "Weights such as `(word:1.2)` in a prompt are plain text to the trainer."


def check_steps(settings: Any) -> None:
    """Raises InvalidInputError for more steps than the sampler has timesteps, or none to run."""
    from ._schedulers import LCM_STEPS

    most = LCM_STEPS if settings.sampler in ("lcm", "custom_lcm") else TIMESTEPS
    if settings.steps > most:
        raise InvalidInputError(
            f"steps={settings.steps}; the sampler {settings.sampler!r} takes at most {most}"
        )
    if int(settings.steps * settings.denoise) < 1:
        raise InvalidInputError(
            f"denoise={settings.denoise} of {settings.steps} steps leaves none to run; raise either"
        )


def check_sd15_steps(settings: Any) -> None:
    """As check_steps; with steps_offset 1 the first of 1000 steps lies past the end of some."""
    check_steps(settings)
    if settings.steps == TIMESTEPS and settings.sampler in ("ddpm", "ddim", "pndm"):
        raise InvalidInputError(
            f"steps={settings.steps}; the sampler {settings.sampler!r} takes at most "
            f"{TIMESTEPS - 1} with SD 1.5"
        )


def render_sd15(context: Any) -> Any:
    """SD 1.5 frames, uint8 (1, H, W, 3)."""
    import diffusers

    from ._schedulers import stable_diffusion_scheduler
    from ._text import clip_hidden

    settings, model = context.settings, context.model
    pipeline_class: Any = diffusers.StableDiffusionPipeline
    pipeline = pipeline_class(
        **model.parts(),
        scheduler=stable_diffusion_scheduler(settings.sampler, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with context.place(pipeline):
        ids = [
            _clip_ids(context, "tokenizer", text)
            for text in (settings.prompt, settings.negative_prompt)
        ]
        positive, negative = (clip_hidden(pipeline.text_encoder, tokens) for tokens in ids)
        return _run(
            context,
            pipeline,
            diffusers.StableDiffusionImg2ImgPipeline,
            prompt_embeds=positive.to(model.device, model.dtype),
            negative_prompt_embeds=negative.to(model.device, model.dtype),
        )


def render_sdxl(context: Any) -> Any:
    """SDXL frames, uint8 (1, H, W, 3)."""
    import diffusers

    from ._schedulers import stable_diffusion_scheduler

    settings, model = context.settings, context.model
    pipeline = diffusers.StableDiffusionXLPipeline(
        **model.parts(),
        scheduler=stable_diffusion_scheduler(settings.sampler, steps_offset=0),
        add_watermarker=False,
    )
    with context.place(pipeline):
        positive, pooled = _encode_sdxl(context, settings.prompt, settings.prompt_2)
        negative, negative_pooled = _encode_sdxl(
            context, settings.negative_prompt, settings.negative_prompt_2
        )
        return _run(
            context,
            pipeline,
            diffusers.StableDiffusionXLImg2ImgPipeline,
            prompt_embeds=positive,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
            guidance_rescale=settings.guidance_rescale,
        )


def _encode_sdxl(context: Any, prompt: str, prompt_2: str) -> tuple[Any, Any]:
    # (1, 77, C1 + C2) of both encoders, and the pooled output (1, C) of the second
    import torch

    from ._text import clip_penultimate

    modules, device = context.model.modules, context.model.device
    ids = _clip_ids(context, "tokenizer", prompt)
    hidden, _ = clip_penultimate(modules["text_encoder"], ids)
    ids_2 = _clip_ids(context, "tokenizer_2", prompt_2)
    hidden_2, pooled = clip_penultimate(modules["text_encoder_2"], ids_2)
    embeds = torch.cat([hidden, hidden_2], dim=-1)
    return embeds.to(device, context.model.dtype), pooled.to(device, context.model.dtype)


def _clip_ids(context: Any, name: str, prompt: str) -> Any:
    from ._text import clean_clip_prompt, token_ids

    tokenizer = context.model.tokenizers[name]
    prompt = clean_clip_prompt(prompt, context.profile)
    return token_ids(tokenizer, prompt, tokenizer.model_max_length, context.model.device)


def _run(context: Any, pipeline: Any, image_to_image: Any, **embeds: Any) -> Any:
    from ._render import frames, step_callback

    settings = context.settings
    arguments = {
        **embeds,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": context.generator,
        "callback_on_step_end": step_callback(context),
    }
    pipeline.set_progress_bar_config(disable=True)
    if settings.denoise == 1:
        output = pipeline(**arguments, height=settings.height, width=settings.width)
        return frames(output.images[0])
    vae = context.model.modules["vae"]
    latents = context.latents.to(context.model.device, context.model.dtype)
    start = image_to_image(**pipeline.components)
    start.set_progress_bar_config(disable=True)
    output = start(
        **arguments, image=latents * vae.config.scaling_factor, strength=settings.denoise
    )
    return frames(output.images[0])


def build_tiny_sd15(seed: int) -> dict[str, Any]:
    """The parts of a toy SD 1.5, real classes."""
    from . import _tiny

    tokenizer = _tiny.clip_tokenizer_files()
    return {
        "tokenizer": tokenizer,
        "text_encoder": _tiny.clip_text_model(seed),
        "unet": _tiny.unet(
            seed,
            block_out_channels=(16, 32, 32, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=32,
            attention_head_dim=4,
        ),
        "vae": _tiny.autoencoder_kl(seed, latent_channels=4, scaling_factor=0.18215),
        "scheduler": _tiny.scheduler("PNDMScheduler", skip_prk_steps=True, **_tiny.SD_BETAS),
    }


def build_tiny_sdxl(seed: int) -> dict[str, Any]:
    """The parts of a toy SDXL, real classes."""
    from . import _tiny

    return {
        "tokenizer": _tiny.clip_tokenizer_files(),
        "tokenizer_2": _tiny.clip_tokenizer_files(pad="!"),
        "text_encoder": _tiny.clip_text_model(seed),
        "text_encoder_2": _tiny.clip_text_model(seed, projection=32),
        "unet": _tiny.unet(
            seed,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        "vae": _tiny.autoencoder_kl(seed, latent_channels=4, scaling_factor=0.13025),
        "scheduler": _tiny.scheduler("EulerDiscreteScheduler", **_tiny.SD_BETAS),
    }


SD15 = ModelSpec(
    id="sd15",
    title="Stable Diffusion 1.5",
    task="text-to-image",
    arch="sd15",
    repo_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    pipeline="StableDiffusionPipeline",
    latent_channels=4,
    multiple_of=8,
    defaults=Defaults(width=512, height=512, steps=25, guidance_scale=6.0, sampler="ddpm"),
    samplers=SAMPLERS,
    lora=LoraLayout(
        prefixes=(("lora_unet", "unet"), ("lora_te", "text_encoder")),
        separator="_",
        alpha=True,
        targets=("attentions", "resnets", "downsamplers", "upsamplers", "self_attn", "mlp"),
        base_model="sd_1.5",
    ),
    base_loras=BaseLoras(fields=("lora_path",), by_peft=True),
    source="ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion",
    components=("text_encoder", "unet", "vae"),
    quantizing=Quantizing(denoiser=False),
    clip_tokenizers=("tokenizer",),
    single_file=True,
    check=check_sd15_steps,
    render=render_sd15,
    build_tiny=build_tiny_sd15,
    notes=(
        "The trainer samples with a scheduler of its own (DDPM, leading steps offset by 1), not "
        "with the checkpoint's: up to 141 levels off otherwise; without the offset alone, 28.",
        LORA_ROUNDING,
        CPU_NOISE,
        "The files of the fp16 variant are rounded once more than those the trainer loads.",
        "The safety checker, which can black a picture out, is not there in the trainer.",
        PLAIN_PROMPTS,
    ),
)
SDXL = replace(
    SD15,
    id="sdxl",
    title="Stable Diffusion XL",
    arch="sdxl",
    repo_id="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline="StableDiffusionXLPipeline",
    defaults=replace(SD15.defaults, width=1024, height=1024),
    lora=replace(
        SD15.lora,
        prefixes=(
            ("lora_unet", "unet"),
            ("lora_te1", "text_encoder"),
            ("lora_te2", "text_encoder_2"),
        ),
        base_model="sdxl_1.0",
        original="sgm",
    ),
    components=("text_encoder", "text_encoder_2", "unet", "vae"),
    check=check_steps,
    clip_tokenizers=("tokenizer", "tokenizer_2"),
    render=render_sdxl,
    build_tiny=build_tiny_sdxl,
    notes=(
        "The trainer samples with a scheduler of its own (DDPM, leading steps, no offset), not "
        "with the checkpoint's: up to 106 levels off otherwise.",
        LORA_ROUNDING,
        CPU_NOISE,
        "An empty negative prompt is encoded as any other; the checkpoint asks for zeros instead.",
        "diffusers marks SDXL pictures with an invisible watermark where that package is "
        "installed; the trainer does not.",
        "The files of the fp16 variant are rounded once more than those the trainer loads.",
        PLAIN_PROMPTS,
    ),
)
MODELS = (SD15, SDXL)
