"""The text side of a toy Qwen-Image: Qwen2.5-VL with its vision tower, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ._tiny import TokenizerFiles, fill, write_json
from ._tiny_language import bpe_tokenizer_files, bpe_vocabulary

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WIDTH = 32
# The released template's words for a conversation of plain messages that a system prompt opens.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen25_vl_tokenizer_files(**config: Any) -> TokenizerFiles:
    """Writes a Qwen2.5-VL tokenizer's files."""
    return bpe_tokenizer_files(
        "Qwen2Tokenizer", SPECIALS, pad="<|endoftext|>", eos="<|im_end|>", unk_token=None, **config
    )


def qwen25_vl_processor_files(
    class_name: str = "Qwen2_5_VLProcessor", **config: Any
) -> TokenizerFiles:
    """Writes a Qwen2.5-VL processor's files: its tokenizer with chat template, its pictures.

    config: laid over what it says of pictures.
    """
    tokenizer = qwen25_vl_tokenizer_files(chat_template=CHAT)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": class_name,
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 1280,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        **config,
    }

    def write(folder: Path) -> None:
        tokenizer.write(folder)
        write_json(folder / "preprocessor_config.json", pictures)

    return TokenizerFiles(class_name, write)


def qwen25_vl(seed: int) -> torch.nn.Module:
    """A Qwen2.5-VL of two language and two vision layers, 32 wide."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: index for index, token in enumerate(bpe_vocabulary(SPECIALS))}
    text = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "use_sliding_window": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return fill(Qwen2_5_VLForConditionalGeneration(config), seed)
