"""Prompt encoding as the trainer does it, with the text encoders' behaviour pinned.

What the installed transformers version would change is fixed here: the CLIP prompt is repaired
by ftfy or not by the profile, T5 computes its softmax in fp32 (transformers 5.15 and newer
switched to SDPA, which rounds differently), and Gemma 2 leaves out its soft cap, as SDPA does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.errors import MissingDependencyError
from ..core.missing import pip_command
from ..core.versions import Profile


def is_transformers_4() -> bool:
    """Whether the installed transformers is 4.x, which reads its own configurations only."""
    import transformers

    return transformers.__version__.startswith("4.")


def encoder_config(folder: Path | str) -> Any:
    """A text encoder's configuration, also where transformers 5 saved it and 4 is to read it."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder))
    text = getattr(config, "text_config", config)
    saved_by_5 = getattr(text, "rope_parameters", None)
    if is_transformers_4() and saved_by_5:
        if "full_attention" in saved_by_5:  # Gemma 3 has two kinds of layers
            text.rope_local_base_freq = saved_by_5["sliding_attention"]["rope_theta"]
            saved_by_5 = saved_by_5["full_attention"]
        rope = dict(saved_by_5)
        text.rope_theta = rope.pop("rope_theta", text.rope_theta)
        text.rope_scaling = rope
    return config


def clean_clip_prompt(prompt: str, profile: Profile) -> str:
    """The prompt as the CLIP tokenizer of the trainer's transformers version reads it."""
    if profile.has("clip_prompt_without_ftfy"):
        return prompt
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"trainer version {profile.version} repairs CLIP prompts with ftfy ({error}); "
            f"run `{pip_command('ftfy')}`, or choose a newer trainer_version"
        ) from error
    return ftfy.fix_text(prompt)


def token_ids(tokenizer: Any, prompt: str, max_length: int, device: torch.device) -> torch.Tensor:
    """Token ids, padded and cut to max_length. Returns (1, max_length), int64, on the device.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/train_tools.py::text_tokenize
    """
    encoded = tokenizer(
        [prompt],
        padding="max_length",
        max_length=max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids.to(device)


def clip_hidden(text_encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """The final hidden state of a CLIP text encoder: (1, 77, C)."""
    return text_encoder(ids)[0]


def clip_penultimate(text_encoder: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last but one hidden state, (1, 77, C), and the first output of a CLIP text encoder.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/train_tools.py::text_encode_xl
    """
    output = text_encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]


def clip_pooled(text_encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """The pooled output of a CLIP text encoder: (1, C)."""
    return text_encoder(ids).pooler_output.to(text_encoder.dtype)


def t5_hidden(text_encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states of a T5 encoder without attention mask: (1, L, C)."""
    return text_encoder(ids)[0].to(text_encoder.dtype)


def pin_t5_attention(text_encoder: Any) -> None:
    """Makes a T5 encoder attend as transformers 4.57 to 5.14 do: softmax in fp32, eager."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    name = "ai_toolkit_inference_t5"
    AttentionInterface.register(name, _t5_attention)
    AttentionMaskInterface.register(name, eager_mask)
    for config in (text_encoder.config, text_encoder.encoder.config):  # UMT5's has its own
        config._attn_implementation = name


def _t5_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, L, D)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,  # (1, H, L, L)
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(3, 2)
    if scaling is not None and scaling != 1.0:
        scores = scores * scaling
    bias = position_bias
    if attention_mask is not None:
        mask = attention_mask[:, :, :, : key.shape[-2]]
        bias = mask if bias is None else bias + mask
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores.float(), dim=-1).type_as(scores)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def pin_gemma2_attention(text_encoder: Any) -> None:
    """Makes a Gemma 2 attend by SDPA, without its soft cap, as transformers 4.57 to 5.12 do.

    5.23 takes the eager way, which caps the scores.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    name = "ai_toolkit_inference_gemma2"
    AttentionInterface.register(name, _sdpa_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    text_encoder.config._attn_implementation = name


def _sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, L, D)
    key: torch.Tensor,  # (B, H / groups, L, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # None: nothing is padded
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    causal = attention_mask is None
    if not causal:  # fused kernels take either a mask or grouped heads
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, scale=scaling, is_causal=causal, enable_gqa=causal
    )
    return output.transpose(1, 2).contiguous(), None


# What a class of transformers computes is made to stay what it was for the trainer.
PINS = {
    "T5EncoderModel": pin_t5_attention,
    "UMT5EncoderModel": pin_t5_attention,
    "Gemma2Model": pin_gemma2_attention,
}
