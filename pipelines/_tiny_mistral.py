"""The text side of a toy FLUX.2 dev: Mistral Small 3 with its vision tower, and its processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ._tiny import TokenizerFiles, fill, write_json
from ._tiny_language import bpe_tokenizer_files, bpe_vocabulary

SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
)  # fmt: skip
# The released template's words for a system's and a user's text.
CHAT = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- set text = message['content'] if message['content'] is string"
    " else message['content'][0]['text'] %}"
    "{%- if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + text + '[/INST]' }}{%- endif %}"
    "{%- endfor %}"
)
LAYERS = 31  # one more than is looked at, whose states the model does not normalise


def mistral_processor_files() -> TokenizerFiles:
    """Writes the files of Mistral's processor: tokenizer, template, and what is for pictures."""
    tokenizer = bpe_tokenizer_files(
        "LlamaTokenizerFast",
        SPECIALS,
        pad="<pad>",
        eos="</s>",
        bos="<s>",
        nfc=False,
        unk_token="<unk>",
        padding_side="left",
        processor_class="PixtralProcessor",
    )
    images = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    reading = {"image_processor_type": "PixtralImageProcessor", "patch_size": 4}

    def write(folder: Path) -> None:
        tokenizer.write(folder)
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        del settings["add_prefix_space"]  # with it 4.57 wants a SentencePiece file
        write_json(config, settings)
        named = {"processor_class": "PixtralProcessor"}
        write_json(folder / "processor_config.json", images | named)
        write_json(folder / "preprocessor_config.json", reading | named)
        (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")

    return replace(tokenizer, class_name="PixtralProcessor", write=write)


def mistral3(seed: int, width: int = 16) -> torch.nn.Module:
    """A Mistral 3 of a few more language layers than FLUX.2 looks at."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    ids = {token: index for index, token in enumerate(bpe_vocabulary(SPECIALS))}
    text: dict[str, Any] = {
        "model_type": "mistral",
        "vocab_size": len(ids),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rope_theta": 1_000_000_000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 4,
    }
    config = Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=ids["[IMG]"],
        tie_word_embeddings=False,
    )
    return fill(Mistral3ForConditionalGeneration(config), seed)
