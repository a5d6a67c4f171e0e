"""HiDream I1.

The network and the pipeline are those of diffusers, which compute what the trainer's copies of the
first release do; the scheduler is the trainer's.
Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/hidream/hidream_model.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import Defaults, LoraLayout, ModelSpec, Quantizing

TOKENS = 128  # of every text encoder
LLAMA = "unsloth/Meta-Llama-3.1-8B-Instruct"
GRID = 16  # px
LATENT_PIXELS = 8
SIDE = 128  # latents; the area of every sample is its square
RELEASED_TOKENS = 4096  # the released network's most image tokens


def check_hidream(settings: Any) -> None:
    """Raises InvalidInputError for so many steps that the trainer's scheduler fails.

    It looks up where it is by the timestep, a whole number; two steps must not start with the same.
    """
    check_steps(settings.steps, _shift(RELEASED_TOKENS))


def check_steps(steps: int, shift: float) -> None:
    """The same for a scheduler of this shift."""
    from ._unipc import unipc_sigmas, unipc_timesteps

    timesteps = unipc_timesteps(unipc_sigmas(steps, shift))
    if steps > 1 and timesteps[0] == timesteps[1]:
        raise InvalidInputError(
            f"steps={steps}; with so many the first two have the same timestep, at which "
            "the trainer fails; use 300 or less"
        )


def sampled_size(width: int, height: int, side: int = SIDE) -> tuple[int, int]:
    """(width, height) of the sample for a size asked for, px: its shape, at the area of all."""
    scale = math.sqrt((side * LATENT_PIXELS) ** 2 / (width * height))
    return int(width * scale // GRID * GRID), int(height * scale // GRID * GRID)


def load_hidream(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint, through bf16, as the trainer loads them for every precision.

    Llama attends eagerly there, since its attention weights are asked for.
    """
    import diffusers
    import torch
    import transformers

    from ._loading import part_path

    def read(module_class: Any, name: str, **options: Any) -> Any:
        path = part_path(spec, source, name)
        return module_class.from_pretrained(
            path, torch_dtype=torch.bfloat16, use_safetensors=True, **options
        )

    clip: Any = transformers.CLIPTextModelWithProjection
    tokenizers: Any = transformers
    llama_tokenizer = tokenizers.PreTrainedTokenizerFast.from_pretrained(
        part_path(spec, source, "tokenizer_4")
    )
    llama_tokenizer.pad_token = llama_tokenizer.eos_token
    return {
        "text_encoder": read(clip, "text_encoder"),
        "text_encoder_2": read(clip, "text_encoder_2"),
        "text_encoder_3": read(transformers.T5EncoderModel, "text_encoder_3"),
        "text_encoder_4": read(
            transformers.LlamaForCausalLM, "text_encoder_4", attn_implementation="eager"
        ),
        "tokenizer_3": tokenizers.T5TokenizerFast.from_pretrained(
            part_path(spec, source, "tokenizer_3")
        ),
        "tokenizer_4": llama_tokenizer,
        "transformer": read(diffusers.HiDreamImageTransformer2DModel, "transformer"),
        "vae": read(diffusers.AutoencoderKL, "vae"),
    }


def render_hidream(context: Any) -> Any:
    """HiDream frames, uint8 (1, H, W, 3), at the area of all samples whatever size is asked for.

    A network made for fewer latents, as toys are, is sampled at its own area.
    """
    import diffusers

    from ._flow import start_latents
    from ._render import frames, step_callback
    from ._unipc import FlowUniPC

    settings, model = context.settings, context.model
    transformer = model.modules["transformer"]
    skipped = settings.steps - min(settings.steps * settings.denoise, settings.steps)
    scheduler: Any = FlowUniPC(_shift(transformer.max_seq), int(skipped))
    pipeline: Any = diffusers.HiDreamImagePipeline(**model.parts(), scheduler=scheduler)
    pipeline.default_sample_size = min(SIDE, *transformer.config.max_resolution)
    pipeline.set_progress_bar_config(disable=True)
    latents = None
    if settings.denoise < 1:
        _check_start(settings, pipeline.default_sample_size)
        scheduler.set_timesteps(settings.steps)
        latents = start_latents(context, float(scheduler.sigmas[0]))
    with context.place(pipeline):
        output = pipeline(
            **encode_prompts(context, pipeline),
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=context.generator,
            latents=latents,
            callback_on_step_end=step_callback(context),
        )
        return frames(output.images[0])


def _shift(tokens: int) -> float:
    # of the noise levels, for a network of so many image tokens at most
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(tokens * slope + (0.5 - slope * 256))


def _check_start(settings: Any, side: int) -> None:
    given = (settings.width, settings.height)
    sampled = sampled_size(*given, side)
    if given != sampled:
        raise InvalidInputError(
            f"latents of {given[0]}x{given[1]} px, but hidream samples this shape at "
            f"{sampled[0]}x{sampled[1]} px only: encode the picture at that size"
        )


def encode_prompts(context: Any, pipeline: Any) -> dict[str, Any]:
    """What the network takes of both prompts, by the names of HiDream's pipeline.

    Pooled CLIP outputs (1, C1 + C2), T5 (1, 128, C3), all of Llama's layers (layers, 1, 128, C4).
    """
    import torch

    from ._text import clean_clip_prompt

    settings, model = context.settings, context.model
    embeds = {}
    for prefix, prompt in (("", settings.prompt), ("negative_", settings.negative_prompt)):
        clip_prompt = clean_clip_prompt(prompt, context.profile)
        options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
        pooled = [
            pipeline._get_clip_prompt_embeds(
                model.tokenizers[f"tokenizer{number}"],
                model.modules[f"text_encoder{number}"],
                clip_prompt,
                max_sequence_length=TOKENS,
                **options,
            )
            for number in ("", "_2")
        ]
        t5 = pipeline._get_t5_prompt_embeds(prompt, TOKENS, **options)
        llama = pipeline._get_llama3_prompt_embeds(prompt, TOKENS, **options)
        embeds |= {
            f"{prefix}pooled_prompt_embeds": torch.cat(pooled, dim=-1).to(**options),
            f"{prefix}prompt_embeds_t5": t5.to(**options),
            f"{prefix}prompt_embeds_llama3": llama.to(**options),
        }
    return embeds


def build_tiny_hidream(seed: int, latents: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    """The parts of a toy HiDream, real classes, made for so many latents."""
    from diffusers import HiDreamImageTransformer2DModel

    from . import _tiny, _tiny_llama, _tiny_spiece

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[32, _tiny_llama.WIDTH],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),  # type: ignore[arg-type]
        max_resolution=latents,
        llama_layers=[0, 1, 1],
    )
    return {
        "tokenizer": _tiny.clip_tokenizer_files(),
        "tokenizer_2": _tiny.clip_tokenizer_files(pad="!"),
        "tokenizer_3": _tiny_spiece.t5_spiece_tokenizer_files(),
        "tokenizer_4": _tiny_llama.llama_tokenizer_files(),
        "text_encoder": _tiny.clip_text_model(seed, projection=32, positions=TOKENS),
        "text_encoder_2": _tiny.clip_text_model(seed + 1, projection=32, positions=TOKENS),
        "text_encoder_3": _tiny.t5_encoder(seed),
        "text_encoder_4": _tiny_llama.llama(seed),
        "transformer": _tiny.fill(transformer, seed),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler(
            "UniPCMultistepScheduler",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
        ),
    }


HIDREAM = ModelSpec(
    id="hidream",
    title="HiDream I1 Full",
    task="text-to-image",
    arch="hidream",
    repo_id="HiDream-ai/HiDream-I1-Full",
    pipeline="HiDreamImagePipeline",
    latent_channels=16,
    multiple_of=8,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("double_stream_blocks", "single_stream_blocks"),
        base_model="hidream_i1",
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/hidream/",
    components=(
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "text_encoder_4",
        "transformer",
        "vae",
    ),
    quantizing=Quantizing(encoders=("text_encoder_3", "text_encoder_4")),
    elsewhere=(("text_encoder_4", LLAMA), ("tokenizer_4", LLAMA)),
    clip_tokenizers=("tokenizer", "tokenizer_2"),
    load=load_hidream,
    check=check_hidream,
    render=render_hidream,
    build_tiny=build_tiny_hidream,
    notes=(
        "The size asked for only gives the shape: every sample has the area of 1024x1024.",
        "The scheduler is UniPC of order 2 with shift 3.16 on a grid that starts at 0.99967, "
        "itself shifted once by 3; pipelines of diffusers set shift 3 and another start.",
        "Llama 3.1 8B attends eagerly, and its padding is its end of turn, which the network sees.",
        "CLIP reads 128 tokens, so it must be the long CLIP of the HiDream repository.",
        "The network's attention is torch's. With flash-attn installed, the trainer takes that.",
    ),
)
MODELS = (HIDREAM,)
