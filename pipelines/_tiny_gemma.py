"""A toy Gemma: sentence-piece BPE as its tokenizer has it, and Gemma 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ._tiny import WORDS, TokenizerFiles, fill, write_json

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
SPACE = "\u2581"


def gemma_vocabulary() -> list[str]:
    """Specials, the 256 bytes for what no piece covers, characters, the merges of WORDS."""
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [SPACE, *map(chr, range(33, 127))]
    merged = [left + right for left, right in _merges()]
    return list(dict.fromkeys([*SPECIALS, *by_byte, *characters, *merged]))


def gemma_tokenizer_files() -> TokenizerFiles:
    """Writes a Gemma tokenizer's files: tokenizer.json and its configuration, padding left."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(gemma_vocabulary())}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = _starts_with_bos(vocabulary["<bos>"])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    names = {f"{token[1:4]}_token": token for token in SPECIALS[:4]}
    config = {
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "GemmaTokenizer",
    }

    def write(folder: Path) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "special_tokens_map.json", names)
        write_json(folder / "tokenizer_config.json", config)

    return TokenizerFiles("GemmaTokenizerFast", write)


def gemma2(seed: int) -> torch.nn.Module:
    """A Gemma 2 of three layers, 32 wide, two heads to a key."""
    from transformers import Gemma2Config, Gemma2Model

    config: dict[str, Any] = {
        "vocab_size": len(gemma_vocabulary()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
    }
    return fill(Gemma2Model(Gemma2Config(**config)), seed)


def _starts_with_bos(bos: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )


def _merges() -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for word in [*WORDS, *(SPACE + word for word in WORDS)]:
        parts = list(word)
        while len(parts) > 1:
            merges[(parts[0], parts[1])] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    return list(merges)
