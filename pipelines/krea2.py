"""Krea 2 Raw and Turbo.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/krea2/krea2.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.specs import BaseLoras, Defaults, LoraLayout, ModelSpec, Quantizing
from ..core.versions import Profile

# Around every prompt; the encoder sees all of it, the network no more than what follows the
# first DROPPED tokens.
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n"
)
PLACE = "<|image_pad|>"  # of each token of a picture
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34  # tokens of BEFORE
PROMPT_TOKENS = 512  # at most
HIDDEN_STATES = tuple(range(2, 36, 3))  # of the encoder, that the network is given
TOKEN = 16  # px a side
# How far noise levels are shifted, between pictures of this many tokens.
SHIFTS = ((256, 0.5), (6400, 1.15))


def load_krea2(
    spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None, *, seeing: bool = False
) -> dict[str, Any]:
    """The parts of a checkpoint, with the vision tower only if it is `seeing`, as editing needs.

    source: a folder; or the network in a file of the first release, with the rest in `folder`.
    """
    import diffusers

    from ._krea2 import compute_as_trainer, read_network
    from ._qwen3_vl import read_qwen3_vl, read_qwen_tokenizer

    reading: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    rest = str(folder or source)
    if folder is None:
        build = diffusers.Krea2Transformer2DModel
        network = build.from_pretrained(rest, subfolder="transformer", **reading)
    else:
        network = read_network(source, folder / "transformer", dtype)
    return {
        "tokenizer": read_qwen_tokenizer(Path(rest) / "tokenizer"),
        "text_encoder": read_qwen3_vl(Path(rest) / "text_encoder", dtype, seeing=seeing),
        "transformer": compute_as_trainer(network),
        "vae": diffusers.AutoencoderKLQwenImage.from_pretrained(rest, subfolder="vae", **reading),
    }


def render_krea2(context: Any, see: Callable[..., Any] | None = None) -> Any:
    """Krea 2 frames, uint8 (1, H, W, 3). Latents and steps are fp32 in every precision.

    see: (context, pipeline) -> what encodes a prompt, and the network, both shown pictures; its
    random numbers come before those of the latents.
    """
    import diffusers

    from ._qwen_vae import in_tiles

    parts = context.model.parts()
    # never called: it tells offloading what works when
    pipeline: Any = diffusers.Krea2Pipeline(
        **parts, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )
    with context.place(pipeline):
        encode, network = (see or _unseeing)(context, pipeline)
        latents = _denoise(context, pipeline, encode, network)
        with in_tiles(pipeline.vae, context.settings.low_vram):
            return _decode(pipeline.vae, latents.to(context.model.dtype))


def _unseeing(context: Any, pipeline: Any) -> tuple[Any, Any]:
    return partial(encode_krea2, context), pipeline.transformer


def _denoise(context: Any, pipeline: Any, encode: Any, network: Any) -> Any:
    # latents (1, 16, H/8, W/8), fp32
    import torch

    from ._render import step_callback

    settings, model = context.settings, context.model
    guidance = network_guidance(context.profile, settings.guidance_scale)
    text = encode(settings.prompt)
    negative = encode(settings.negative_prompt) if guidance > 0 else None
    levels = noise_levels(settings.width, settings.height, settings.steps)
    levels = levels[int(settings.steps - settings.steps * settings.denoise) :]
    pipeline._num_timesteps = len(levels) - 1
    latents = _start(context, levels[0])
    report = step_callback(context)
    for index, (level, following) in enumerate(pairwise(levels)):
        given = latents.to(model.dtype)
        t = torch.full((1,), level, dtype=model.dtype, device=model.device)
        velocity = network(given, text, t)
        if negative is not None:
            velocity = velocity + guidance * (velocity - network(given, negative, t))
        latents = latents + (following - level) * velocity.float()
        report(pipeline, index, level, {"latents": latents})
    return latents


def network_guidance(profile: Profile, guidance_scale: float) -> float:
    """g in `positive + g * (positive - negative)`; at 0 the negative prompt is not looked at."""
    if profile.has("krea2_guidance_from_one"):
        return max(0.0, guidance_scale - 1.0)
    return guidance_scale


def noise_levels(width: int, height: int, steps: int) -> list[float]:
    """Where each step starts and the last one ends: from 1 for noise to 0.

    width, height: px. Turbo has the same levels, as the trainer samples it.
    """
    import torch

    (few, least), (many, most) = SHIFTS
    slope = (most - least) / (many - few)
    shift = math.exp(slope * ((height // TOKEN) * (width // TOKEN)) + (least - slope * few))
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float32)
    return (shift / (shift + (1.0 / even - 1.0))).tolist()


def encode_krea2(context: Any, prompt: str, sights: Sequence[Any] = ()) -> Any:
    """The hidden states the network is given of a prompt: (1, L, 12, C), nothing padded.

    sights: pictures before it, see _qwen3_vl_vision; then it is not cut.
    Upstream: ostris/ai-toolkit@27a03a91
    extensions_built_in/diffusion_models/krea2/src/text_encoder.py::encode_krea_prompt
    """
    import torch

    from ._qwen3_vl_vision import encoder_inputs

    model = context.model
    tokenizer, encoder = model.tokenizers["tokenizer"], model.modules["text_encoder"]
    limit = {} if sights else {"truncation": True, "max_length": PROMPT_TOKENS + DROPPED}
    shown = "".join(
        f"Picture {number}: <|vision_start|>{PLACE * sight.tokens}<|vision_end|>"
        for number, sight in enumerate(sights, 1)
    )
    asked = tokenizer([BEFORE + shown + prompt], **limit)
    ids = torch.tensor([asked.input_ids[0] + tokenizer([AFTER]).input_ids[0]])
    ids = ids.to(model.device)
    states = encoder(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        output_hidden_states=True,
        **encoder_inputs(encoder, ids, sights),
    ).hidden_states
    return torch.stack([states[index] for index in HIDDEN_STATES], dim=2)[:, DROPPED:]


def _start(context: Any, level: float) -> Any:
    # noise alone, or as much of it over the given latents as the first step asks for
    import torch

    from ._render import scaled_latents

    settings, model = context.settings, context.model
    shape = (1, model.spec.latent_channels, settings.height // 8, settings.width // 8)
    noise = torch.randn(shape, generator=context.generator, dtype=torch.float32).to(model.device)
    if settings.denoise == 1:
        return noise
    latents = scaled_latents(model.modules["vae"].config, context.latents.float())
    return level * noise + (1 - level) * latents.to(model.device)


def _decode(vae: Any, latents: Any) -> Any:
    # (1, 16, h, w) -> uint8 (1, 8h, 8w, 3)
    import torch

    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    image = vae.decode(latents[:, :, None] * std + mean, return_dict=False)[0][:, :, 0]
    pixels = (image.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def build_tiny_krea2(
    seed: int, layers: int = 2, deepstack: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """The parts of a toy Krea 2, real classes. deepstack: see qwen3_vl."""
    from diffusers import Krea2Transformer2DModel

    from . import _tiny
    from ._qwen3_vl import WIDTH, qwen3_vl, qwen3_vl_tokenizer_files
    from ._qwen_vae import tiny_qwen_vae

    transformer = Krea2Transformer2DModel(
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        timestep_embed_dim=32,
        text_hidden_dim=WIDTH,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=128,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "tokenizer": qwen3_vl_tokenizer_files(),
        "text_encoder": qwen3_vl(seed, deepstack),
        "transformer": _tiny.fill(transformer, seed),
        "vae": tiny_qwen_vae(seed),
        "scheduler": _tiny.scheduler(
            "FlowMatchEulerDiscreteScheduler",
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
    }


# What stays in full precision where the rest is quantized.
KEPT = (
    "img_in", "time_embed*", "time_mod_proj*", "txt_in*", "text_fusion.projector", "final_layer*",
)  # fmt: skip
KREA2_RAW = ModelSpec(
    id="krea2",
    title="Krea 2 Raw",
    task="text-to-image",
    arch="krea2",
    repo_id="krea/Krea-2-Raw",
    pipeline="Krea2Pipeline",
    since="krea2",
    latent_channels=16,
    multiple_of=TOKEN,
    defaults=Defaults(width=1024, height=1024, steps=30, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("blocks",),  # those that fuse the text as well
        base_model="krea2",
        original="krea2",
    ),
    base_loras=BaseLoras(fields=("assistant_lora_path",), blocks="blocks"),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/krea2/krea2.py",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        keeps=KEPT,
        keeps_since="krea2_ends_in_full_precision",
        offloads=("transformer", "text_encoder"),
        float8_with_assistant=True,
    ),
    notes=(
        "The network rounds otherwise than diffusers': its tokens are padded to a multiple of 256 "
        "and the padding is masked, and a norm's scale is rounded before 1 is added in fp32.",
        "guidance_scale is the trainer's: since 0.10.21 it is 1 more than what diffusers takes "
        "under this name; before, the same number.",
        "Turbo is sampled with the noise levels of Raw, shifted by the size of the picture; "
        "diffusers gives it a fixed shift of 1.15.",
        "The prompt is encoded without padding; diffusers pads it to 512 tokens, between the "
        "prompt and the end of the template.",
        "Latents and steps are fp32, also in bf16, while time is rounded to bf16.",
        "The text encoder keeps its rotary frequencies in fp32.",
        "With `low_vram`, which is on in jobs of the trainer's form, the VAE decodes in tiles of "
        "256 px. Other stacks decode at once, which shows where a side is above 256 px (19 levels "
        "of the tiny model).",
    ),
    low_vram=True,
    part_file="transformer",
    uncast=("text_encoder",),
    load=load_krea2,
    render=render_krea2,
    build_tiny=build_tiny_krea2,
)
KREA2_TURBO = replace(
    KREA2_RAW,
    id="krea2_turbo",
    title="Krea 2 Turbo",
    arch="krea2:turbo",
    repo_id="krea/Krea-2-Turbo",
    defaults=replace(KREA2_RAW.defaults, steps=9, guidance_scale=1.0),
    build_tiny=lambda seed: build_tiny_krea2(seed, layers=1),
)
MODELS = (KREA2_RAW, KREA2_TURBO)
