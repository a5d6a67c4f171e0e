"""FLUX.1 dev and schnell, and Flex.1, which the trainer samples as FLUX.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.specs import BaseLoras, Defaults, LoraLayout, ModelSpec, Quantizing

T5_TOKENS = 512
NOTES = (
    "Guidance is a number that the network is given and the negative prompt is not used; tools "
    "that run the network twice draw another picture.",
    "T5 is given 512 tokens with padding and no mask. Tools that cut at 256, mask the padding, or "
    "let a newer transformers compute its softmax in bf16 differ.",
    "Loading a LoRA through PEFT rounds its delta before it is added: 1 level off in fp32, more "
    "in bf16.",
    "Latents are noise of the CPU's generator in the model's precision, rounded after each step.",
)


def render_flux(context: Any) -> Any:
    """FLUX frames, uint8 (1, H, W, 3). guidance_scale is only embedded; nothing is negated."""
    import diffusers

    from ._render import frames, step_callback
    from ._schedulers import flux_scheduler

    settings, model = context.settings, context.model
    pipeline = diffusers.FluxPipeline(**model.parts(), scheduler=flux_scheduler(settings.sampler))
    with context.place(pipeline):
        embeds, pooled = encode_flux(context)
        arguments = {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "generator": context.generator,
            "callback_on_step_end": step_callback(
                context, lambda x: _unpack(pipeline, x, settings)
            ),
        }
        if settings.denoise < 1:
            arguments |= {"image": _start(context), "strength": settings.denoise}
            pipeline = diffusers.FluxImg2ImgPipeline(**pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        output: Any = pipeline(**arguments)
        return frames(output.images[0])


def encode_flux(context: Any) -> tuple[Any, Any]:
    """The prompt's T5 hidden states (1, 512, C) and pooled CLIP output (1, C)."""
    from ._text import clean_clip_prompt, clip_pooled, t5_hidden, token_ids

    model, prompt = context.model, context.settings.prompt
    tokenizer = model.tokenizers["tokenizer"]
    clip_prompt = clean_clip_prompt(prompt, context.profile)
    ids = token_ids(tokenizer, clip_prompt, tokenizer.model_max_length, model.device)
    pooled = clip_pooled(model.modules["text_encoder"], ids)
    ids = token_ids(model.tokenizers["tokenizer_2"], prompt, T5_TOKENS, model.device)
    embeds = t5_hidden(model.modules["text_encoder_2"], ids)
    return embeds.to(model.device, model.dtype), pooled.to(model.device, model.dtype)


def flux_inputs(context: Any, pipeline: Any) -> dict[str, Any]:
    """What the transformer is given beside latents and time, the same in all steps."""
    import torch

    settings, model = context.settings, context.model
    embeds, pooled = encode_flux(context)
    size = settings.height // 16, settings.width // 16
    return {
        "encoder_hidden_states": embeds,
        "pooled_projections": pooled,
        "txt_ids": torch.zeros(embeds.shape[1], 3, device=model.device, dtype=model.dtype),
        "img_ids": pipeline._prepare_latent_image_ids(1, *size, model.device, model.dtype),
        "guidance": torch.tensor([settings.guidance_scale], dtype=torch.float32).to(model.device),
        "return_dict": False,
    }


def _unpack(pipeline: Any, latents: Any, settings: Any) -> Any:
    scale = pipeline.vae_scale_factor
    return pipeline._unpack_latents(latents, settings.height, settings.width, scale)


def _start(context: Any) -> Any:
    vae = context.model.modules["vae"]
    latents = context.latents.to(context.model.device, context.model.dtype)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def build_tiny_flux(seed: int, guidance: bool = True, double: int = 2, single: int = 2) -> Any:
    """The parts of a toy FLUX, real classes."""
    from . import _tiny

    return {
        "tokenizer": _tiny.clip_tokenizer_files(),
        "tokenizer_2": _tiny.t5_tokenizer_files(),
        "text_encoder": _tiny.clip_text_model(seed),
        "text_encoder_2": _tiny.t5_encoder(seed),
        "transformer": _tiny.flux_transformer(seed, guidance, double, single),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler(
            "FlowMatchEulerDiscreteScheduler",
            shift=3.0,
            use_dynamic_shifting=guidance,
            base_shift=0.5,
            max_shift=1.15,
        ),
    }


FLUX_DEV = ModelSpec(
    id="flux",
    title="FLUX.1 dev",
    task="text-to-image",
    arch="flux",
    repo_id="black-forest-labs/FLUX.1-dev",
    pipeline="FluxPipeline",
    latent_channels=16,
    multiple_of=16,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch", "mean_flow"),
    lora=LoraLayout(
        prefixes=(("transformer", "transformer"), ("lora_te1", "text_encoder")),
        separator=".",
        alpha=False,
        targets=("transformer_blocks", "self_attn", "mlp"),
        base_model="flux.1",
        original="bfl-flux",
    ),
    base_loras=BaseLoras(
        fields=("assistant_lora_path", "inference_lora_path", "lora_path"),
        by_peft=True,
        layer="transformer.single_transformer_blocks.0.attn.to_k",
        blocks="transformer_blocks",
    ),
    source="ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion",
    components=("text_encoder", "text_encoder_2", "transformer", "vae"),
    quantizing=Quantizing(encoders=("text_encoder_2",), encoders_by="qtype"),
    clip_tokenizers=("tokenizer",),
    negative_prompt=False,
    render=render_flux,
    build_tiny=build_tiny_flux,
    notes=NOTES,
)
FLUX_SCHNELL = replace(
    FLUX_DEV,
    id="flux_schnell",
    title="FLUX.1 schnell",
    repo_id="black-forest-labs/FLUX.1-schnell",
    defaults=replace(FLUX_DEV.defaults, steps=4, guidance_scale=1.0),
    build_tiny=lambda seed: build_tiny_flux(seed, guidance=False),
    notes=(
        "Noise levels are shifted by the size of the picture, as the trainer does for all of "
        "FLUX.1; the checkpoint's own scheduler does not shift.",
        "The trainer trains it with an assistant LoRA. Samples of such a job are drawn with that "
        "one fused and taken away again, which leaves a trace, also before the first step.",
        "There is no guidance: the network is not given the number.",
        *NOTES[1:],
    ),
)
FLEX1 = replace(
    FLUX_DEV,
    id="flex1",
    title="Flex.1 alpha",
    arch="flex1",
    repo_id="ostris/Flex.1-alpha",
    build_tiny=lambda seed: build_tiny_flux(seed, double=1, single=3),
    notes=(*NOTES, "It is sampled with the schedule of FLUX.1 dev, whatever its own says."),
)
MODELS = (FLUX_DEV, FLUX_SCHNELL, FLEX1)
