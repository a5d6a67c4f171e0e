"""Qwen3-VL as a text encoder: read by any transformers from 4.57 on, and a toy one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ._qwen3_vl_vision import look_as_trainer
from ._text import encoder_config, is_transformers_4
from ._tiny import TokenizerFiles, fill
from ._tiny_language import bpe_tokenizer_files, bpe_vocabulary

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LAYERS = 36
WIDTH = 32


def read_qwen3_vl(folder: Path, dtype: torch.dtype, *, seeing: bool = False) -> Any:
    """The language model, on the CPU, with the vision tower only if it is `seeing`."""
    import transformers

    config = encoder_config(folder)
    build = getattr(transformers, (config.architectures or ["Qwen3VLModel"])[0])
    model = build.from_pretrained(
        str(folder), config=config, torch_dtype=dtype, use_safetensors=True
    )
    if seeing:
        return look_as_trainer(model)
    getattr(model, "model", model).visual = None
    return model


def read_qwen_tokenizer(folder: Path) -> Any:
    """The tokenizer, also of files that transformers 5 saved."""
    import transformers

    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # 5 lists them and 4 wants a table; tokenizer.json has them as well
    listed = isinstance(settings.get("extra_special_tokens"), list) and is_transformers_4()
    given: dict[str, Any] = {"extra_special_tokens": {}} if listed else {}
    build: Any = transformers.Qwen2TokenizerFast  # type: ignore[attr-defined]
    return build.from_pretrained(str(folder), **given)


def qwen3_vl_tokenizer_files() -> TokenizerFiles:
    """Writes a Qwen3-VL tokenizer's files."""
    return bpe_tokenizer_files(
        "Qwen2Tokenizer", SPECIALS, pad="<|endoftext|>", eos="<|im_end|>", unk_token=None
    )


def qwen3_vl(seed: int, deepstack: tuple[int, ...] = (0,)) -> torch.nn.Module:
    """A Qwen3-VL of as many language layers as the 4B has, 32 wide, and few vision layers.

    deepstack: those of them that language layers are given as well.
    """
    from transformers import Qwen3VLConfig, Qwen3VLModel

    ids = {token: index for index, token in enumerate(bpe_vocabulary(SPECIALS))}
    text = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000.0,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": len(deepstack) + 1,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": list(deepstack),
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return fill(Qwen3VLModel(config), seed)
