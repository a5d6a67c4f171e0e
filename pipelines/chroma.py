"""Chroma.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/chroma/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.specs import Defaults, LoraLayout, ModelSpec, Quantizing

T5_TOKENS = 512
LEAST_GUIDANCE = 1.00001  # up to it the negative prompt is not looked at
EXTRAS = "ostris/Flex.1-alpha"  # T5 and VAE


def load(spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None) -> dict[str, Any]:
    """The parts of a checkpoint, see _chroma.load_chroma."""
    from ._chroma import load_chroma

    return load_chroma(spec, source, dtype, folder)


def adapt(name: str, module: Any) -> None:
    """Makes a part of diffusers, loaded or empty, the trainer's, see _chroma.adapt_chroma."""
    from ._chroma import adapt_chroma

    adapt_chroma(name, module)


def render_chroma(context: Any) -> Any:
    """Chroma frames, uint8 (1, H, W, 3), guided by two passes of the network a step."""
    import diffusers

    from ._flow import packed_frames
    from ._schedulers import flux_scheduler

    pipeline: Any = diffusers.ChromaPipeline(
        **context.model.parts(), scheduler=flux_scheduler(context.settings.sampler)
    )
    with context.place(pipeline):
        return packed_frames(context, pipeline, _prediction(context, pipeline))


def _prediction(context: Any, pipeline: Any) -> Any:
    # (packed latents, time) -> what the network predicts, guided
    import torch

    settings, model = context.settings, context.model
    size = settings.height // 16, settings.width // 16
    places = torch.cartesian_prod(torch.zeros(1), *(torch.arange(float(side)) for side in size))
    fixed = {
        "img_ids": places.to(model.device, model.dtype),
        "txt_ids": torch.zeros(T5_TOKENS, 3, device=model.device, dtype=torch.bfloat16),
        "return_dict": False,
    }
    scale = settings.guidance_scale
    text = encode_prompt(context, settings.prompt)
    guided = scale > LEAST_GUIDANCE
    negative = encode_prompt(context, settings.negative_prompt) if guided else None

    def run(latents: Any, time: Any, embeds: Any, mask: Any) -> Any:
        return pipeline.transformer(
            hidden_states=latents,
            timestep=time,
            encoder_hidden_states=embeds,
            attention_mask=_whole_mask(mask, latents.shape[1]),
            **fixed,
        )[0]

    def predict(latents: Any, time: Any) -> Any:
        towards = run(latents, time, *text)
        if negative is None:
            return towards
        away = run(latents, time, *negative)
        return away + scale * (towards - away)

    return predict


def encode_prompt(context: Any, prompt: str) -> tuple[Any, Any]:
    """The prompt's T5 hidden states, (1, 512, C), and which of them are tokens, (1, 512).

    T5 itself is not told. The mask is in the model's dtype, as the trainer casts it.
    """
    from ._text import t5_hidden

    model = context.model
    given = model.tokenizers["tokenizer"](
        [prompt],
        padding="max_length",
        max_length=T5_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(model.device)
    embeds = t5_hidden(model.modules["text_encoder"], given.input_ids)
    return embeds.to(model.dtype), given.attention_mask.to(model.dtype)


def _whole_mask(text: Any, picture: int) -> Any:
    # (1, 512) -> (1, 512 + picture), bool: which tokens attend and are attended to, with one of
    # the padding. Counted in bf16, so that long prompts are rounded, as the trainer counts.
    import torch

    mask = text.bool()
    length = int(text.sum(dim=-1))
    mask[:, length : length + 1] = True
    return torch.cat([mask, mask.new_ones(1, picture)], dim=1)


def build_tiny_chroma(seed: int) -> dict[str, Any]:
    """The parts of a toy Chroma, real classes."""
    from diffusers import ChromaTransformer2DModel

    from . import _tiny
    from ._quiet import quiet_libraries

    with quiet_libraries():  # its class says of another that it moved
        transformer = ChromaTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 14, 14),
            approximator_hidden_dim=64,
            approximator_layers=2,
        )
    return {
        "tokenizer": _tiny.t5_tokenizer_files(),
        "text_encoder": _tiny.t5_encoder(seed),
        "transformer": _tiny.fill(transformer, seed),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler(
            "FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True
        ),
    }


CHROMA = ModelSpec(
    id="chroma",
    title="Chroma",
    task="text-to-image",
    arch="chroma",
    repo_id="lodestones/Chroma1-Base",
    pipeline="ChromaPipeline",
    latent_channels=16,
    multiple_of=16,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("transformer_blocks",),
        base_model="chroma",
        original="chroma",
        writes_original=True,
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/chroma/",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(encoders=("text_encoder",), encoders_by="qtype"),
    elsewhere=(
        ("text_encoder", f"{EXTRAS}/text_encoder_2"),
        ("tokenizer", f"{EXTRAS}/tokenizer_2"),
        ("vae", f"{EXTRAS}/vae"),
    ),
    part_file="transformer",
    notes=(
        "The norms of the approximator have an epsilon of 1e-6; diffusers' have that of the dtype, "
        "in bf16 0.0078.",
        "A block's projections are one matrix, as released; diffusers has four, which round "
        "otherwise in bf16 at the released widths.",
        "T5 sees its padding; the network sees one token of it. In bf16 the tokens of a prompt "
        "beyond 256 are counted with rounding.",
        "T5 and VAE are those of ostris/Flex.1-alpha.",
    ),
    load=load,
    adapt=adapt,
    render=render_chroma,
    build_tiny=build_tiny_chroma,
)
MODELS = (CHROMA,)
