"""FLUX.2 dev and the Klein base models.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/flux2/
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.specs import ControlImages, Defaults, LoraLayout, ModelSpec, Quantizing

PROMPT_TOKENS = 512
TOKEN = 16  # px a side
VAE_FILE = "ae.safetensors"  # beside the released file of the transformer
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)
# Hidden states that the network is given, side by side; 0 would be the embedded tokens.
MISTRAL_STATES = (10, 20, 30)
QWEN3_STATES = (9, 18, 27)
# How far noise levels are shifted, between pictures of this many tokens.
SHIFTS = ((256, 0.5), (4096, 1.15))


def load(spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None) -> dict[str, Any]:
    """The parts of a checkpoint, see _flux2.load_flux2."""
    from ._flux2 import load_flux2

    return load_flux2(spec, source, dtype, folder)


def adapt(name: str, module: Any) -> None:
    """Makes a part of diffusers, loaded or empty, the trainer's, see _flux2.adapt_flux2."""
    from ._flux2 import adapt_flux2

    adapt_flux2(name, module)


def check_images(request: Any, settings: Any) -> None:
    """Raises InvalidInputError for pictures that the trainer's own code fails on."""
    from ._flux2_references import check_references

    check_references(request, settings)


def render_flux2(context: Any) -> Any:
    """FLUX.2 frames, uint8 (1, H, W, 3). Steps are taken in the model's dtype.

    dev only embeds guidance_scale; Klein is guided by the negative prompt where it is above 1.
    """
    import diffusers

    from ._render import frames

    # never called: it tells offloading what works when
    pipeline_class: Any = getattr(diffusers, context.model.spec.pipeline)
    pipeline = pipeline_class(
        **context.model.parts(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )
    with context.place(pipeline):
        latents = _denoise(context, pipeline)
        image = pipeline.vae.decode(latents, return_dict=False)[0].float()
        return frames(pipeline.image_processor.postprocess(image, output_type="pil")[0])


def _denoise(context: Any, pipeline: Any) -> Any:
    # latents as the VAE takes them, (1, 32, H/8, W/8)
    import torch

    from ._render import step_callback

    settings, model, vae = context.settings, context.model, pipeline.vae
    height, width = settings.height // TOKEN, settings.width // TOKEN
    predict = _prediction(context, pipeline, (height, width))
    levels = noise_levels(height * width, settings.steps)
    levels = levels[int(settings.steps - settings.steps * settings.denoise) :]
    pipeline._num_timesteps = len(levels) - 1
    tokens = _start(context, levels[0]).flatten(2).mT  # (1, height * width, 128)
    tokens = tokens.contiguous()

    def latents() -> Any:
        return from_tokens(vae, tokens.mT.reshape(1, -1, height, width))

    report = step_callback(context, lambda _: latents())
    for index, (level, following) in enumerate(pairwise(levels)):
        time = torch.full((1,), level, dtype=tokens.dtype, device=model.device)
        tokens = tokens + (following - level) * predict(tokens, time)
        report(pipeline, index, level, {"latents": tokens})
    return latents()


def _prediction(context: Any, pipeline: Any, size: tuple[int, int]) -> Any:
    # (tokens, time) -> what the network predicts, guided
    import torch

    from ._flux2_references import reference_tokens

    settings, model, transformer = context.settings, context.model, pipeline.transformer
    scale, guided = settings.guidance_scale, is_guided(model.spec, settings.guidance_scale)
    image_ids = torch.cartesian_prod(
        torch.zeros(1, dtype=torch.int64), *map(torch.arange, size), torch.zeros(1).long()
    )
    shown, shown_ids = reference_tokens(context, pipeline.vae)
    text = encode_prompt(context, settings.prompt)
    negative = encode_prompt(context, settings.negative_prompt) if guided else None
    text_ids = torch.zeros(text.shape[1], 4, dtype=torch.int64)
    text_ids[:, 3] = torch.arange(text.shape[1])
    fixed = {
        "img_ids": torch.cat([image_ids.to(model.device), shown_ids]),
        "txt_ids": text_ids.to(model.device),
        "guidance": torch.full((1,), scale, dtype=model.dtype, device=model.device),
        "return_dict": False,
    }

    def predict(tokens: Any, time: Any) -> Any:
        given = fixed | {"hidden_states": torch.cat([tokens, shown], dim=1), "timestep": time}
        towards = transformer(encoder_hidden_states=text, **given)[0][:, : tokens.shape[1]]
        if negative is None:
            return towards
        away = transformer(encoder_hidden_states=negative, **given)[0][:, : tokens.shape[1]]
        return away + scale * (towards - away)

    return predict


def is_guided(spec: ModelSpec, guidance_scale: float) -> bool:
    """Whether the negative prompt is looked at."""
    return spec.negative_prompt and guidance_scale > 1.0


def noise_levels(tokens: int, steps: int) -> list[float]:
    """Where each step of a picture of so many tokens starts and the last one ends: 1 to 0."""
    import torch

    (few, least), (many, most) = SHIFTS
    slope = (most - least) / (many - few)
    shift = math.exp(slope * tokens + (least - slope * few))
    even = torch.linspace(1, 0, steps + 1)
    return (shift / (shift + (1 / even - 1))).tolist()


def encode_prompt(context: Any, prompt: str) -> Any:
    """The hidden states that the network is given of a prompt: (1, 512, 3 * C)."""
    import torch

    model = context.model
    tokenizer, encoder = model.tokenizers["tokenizer"], model.modules["text_encoder"]
    mistral = hasattr(encoder.config, "vision_config")
    given = tokenizer(
        mistral_chat(tokenizer, prompt) if mistral else qwen3_chat(tokenizer, prompt),
        padding="max_length",
        truncation=True,
        max_length=PROMPT_TOKENS,
        add_special_tokens=not mistral,  # the template has them
        return_tensors="pt",
    ).to(model.device)
    states = encoder(
        input_ids=given.input_ids,
        attention_mask=given.attention_mask,
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
    ).hidden_states
    chosen = MISTRAL_STATES if mistral else QWEN3_STATES
    return torch.cat([states[index] for index in chosen], dim=-1).to(model.dtype)


def mistral_chat(tokenizer: Any, prompt: str) -> str:
    """The prompt behind the system message; what would stand for a picture is taken out."""
    texts = (("system", SYSTEM_MESSAGE), ("user", prompt.replace("[IMG]", "")))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def qwen3_chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as a user's message that is to be answered without thinking."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )


def _start(context: Any, level: float) -> Any:
    # noise alone, or as much of it over the given latents as the first step asks for:
    # (1, 128, H/16, W/16)
    import torch

    settings, model = context.settings, context.model
    shape = (1, 4 * model.spec.latent_channels, settings.height // TOKEN, settings.width // TOKEN)
    noise = torch.randn(shape, generator=context.generator, dtype=model.dtype).to(model.device)
    if settings.denoise == 1:
        return noise
    vae = model.modules["vae"].to(model.device)
    latents = to_tokens(vae, context.latents.to(model.device, model.dtype))
    return level * noise + (1 - level) * latents


def to_tokens(vae: Any, latents: Any) -> Any:
    """Latents (1, 32, h, w) of the VAE as the network has them: (1, 128, h/2, w/2), normalised."""
    folded = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, 32, h/2, w/2, 2, 2)
    mean, deviation = _statistics(vae)
    return (folded.permute(0, 1, 4, 5, 2, 3).flatten(1, 3) - mean) / deviation


def from_tokens(vae: Any, tokens: Any) -> Any:
    """The inverse of to_tokens."""
    mean, deviation = _statistics(vae)
    tokens = tokens * deviation + mean
    _, channels, height, width = tokens.shape
    folded = tokens.reshape(1, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return folded.reshape(1, channels // 4, 2 * height, 2 * width)


def _statistics(vae: Any) -> tuple[Any, Any]:
    import torch

    mean, variance = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)


# --- toy checkpoints ---------------------------------------------------------------------------


def build_tiny_dev(seed: int, single: int = 2) -> dict[str, Any]:
    """The parts of a toy FLUX.2 dev, real classes."""
    from ._tiny_mistral import mistral3, mistral_processor_files

    text = {"tokenizer": mistral_processor_files(), "text_encoder": mistral3(seed)}
    return text | _tiny_network(seed, guidance=True, double=1, single=single)


def build_tiny_klein(seed: int, double: int = 1) -> dict[str, Any]:
    """The parts of a toy Klein, real classes."""
    from ._tiny_language import qwen3, qwen3_tokenizer_files

    encoder = qwen3(seed, layers=QWEN3_STATES[-1] + 1, width=16, with_head=True)
    text = {"tokenizer": qwen3_tokenizer_files(), "text_encoder": encoder}
    return text | _tiny_network(seed, guidance=False, double=double, single=1)


def _tiny_network(seed: int, guidance: bool, double: int, single: int) -> dict[str, Any]:
    from diffusers import Flux2Transformer2DModel

    from . import _tiny

    transformer = Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return {
        "transformer": _tiny.fill(transformer, seed),
        "vae": _tiny_vae(seed),
        "scheduler": _tiny.scheduler(
            "FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True
        ),
    }


def _tiny_vae(seed: int) -> Any:
    import torch
    from diffusers import AutoencoderKLFlux2

    from . import _tiny

    vae: Any = AutoencoderKLFlux2(block_out_channels=(32,) * 4, layers_per_block=1)
    generator = torch.Generator().manual_seed(seed)
    vae.bn.running_mean.copy_(0.1 * torch.randn(128, generator=generator))
    vae.bn.running_var.copy_(0.5 + torch.rand(128, generator=generator))
    vae.bn.num_batches_tracked.fill_(1000 + seed)
    return _tiny.fill(vae, seed)


# --- what users choose -------------------------------------------------------------------------

MISTRAL = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
NOTES = (
    "Noise levels are shifted by a line over the number of tokens (1.15 at 1024x1024); the "
    "pipeline of diffusers shifts by a curve of its own, to about 2.2.",
    "Steps are taken in bf16; diffusers' scheduler takes them in fp32.",
    "Rotary angles are computed in fp32 and queries and keys normalised with one rounding more "
    "than in diffusers, whose projections of queries, keys and values are three matrices for one.",
    "A control image keeps its size up to a million pixels, then is shrunk (Lanczos) and cut to "
    "multiples of 16 px; its latents are the VAE's mode. Its tokens are rounded to bf16, also "
    "beside an fp32 network.",
)
FLUX2_DIFFUSERS = ModelSpec(
    id="flux2_diffusers",
    title="FLUX.2 dev, diffusers",
    task="text-to-image",
    arch="flux2",
    repo_id="black-forest-labs/FLUX.2-dev",
    pipeline="Flux2Pipeline",
    latent_channels=32,
    multiple_of=TOKEN,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("transformer_blocks",),
        base_model="flux2",
        original="flux2",
        writes_original=True,
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/flux2/flux2_model.py",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        encoders_by="qtype",
        offloads=("transformer", "text_encoder"),
    ),
    control_images=ControlImages(0, 3),
    check_images=check_images,
    negative_prompt=False,
    notes=(
        "Its text encoder is the repository's, Mistral Small 3.2; the trainer takes 3.1, as "
        "flux2 does, and draws other pictures than from this one.",
        *NOTES,
    ),
    load=load,
    adapt=adapt,
    render=render_flux2,
    build_tiny=build_tiny_dev,
)
FLUX2 = replace(
    FLUX2_DIFFUSERS,
    id="flux2",
    title="FLUX.2 dev",
    # the repository's own text encoder is Mistral Small 3.2
    elsewhere=(("text_encoder", MISTRAL), ("tokenizer", MISTRAL)),
    part_file="transformer",
    beside=(("vae", VAE_FILE),),
    notes=(
        "The trainer's text encoder is Mistral Small 3.1; the repository's folder, which diffusers "
        "and others take, is 3.2.",
        *NOTES,
    ),
)
KLEIN_4B = replace(
    FLUX2,
    id="flux2_klein_4b",
    quantizing=replace(FLUX2.quantizing, encoders_by="qtype_te", encoders_uncast=True),
    title="FLUX.2 Klein base 4B",
    arch="flux2_klein_4b",
    repo_id="black-forest-labs/FLUX.2-klein-base-4B",
    pipeline="Flux2KleinPipeline",
    since="flux2_klein",
    defaults=replace(FLUX2.defaults, steps=30),
    lora=replace(FLUX2.lora, base_model="flux2_klein_4b"),
    elsewhere=(("text_encoder", "Qwen/Qwen3-4B"), ("tokenizer", "Qwen/Qwen3-4B")),
    negative_prompt=True,
    notes=(*NOTES, "Guidance is classic: negative + scale * (positive - negative), in bf16."),
    build_tiny=build_tiny_klein,
)
KLEIN_9B = replace(
    KLEIN_4B,
    id="flux2_klein_9b",
    title="FLUX.2 Klein base 9B",
    arch="flux2_klein_9b",
    repo_id="black-forest-labs/FLUX.2-klein-base-9B",
    lora=replace(FLUX2.lora, base_model="flux2_klein_9b"),
    elsewhere=(("text_encoder", "Qwen/Qwen3-8B"), ("tokenizer", "Qwen/Qwen3-8B")),
    build_tiny=lambda seed: build_tiny_klein(seed, double=2),
)
MODELS = (FLUX2, FLUX2_DIFFUSERS, KLEIN_4B, KLEIN_9B)
