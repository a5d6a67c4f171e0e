"""Toy language models' tokenizers: byte-level BPE as Qwen, Llama and Mistral have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._tiny import WORDS, TokenizerFiles, byte_alphabet, write_json

SPACE = "\u0120"  # how byte-level BPE writes a leading space


def bpe_vocabulary(specials: Sequence[str]) -> list[str]:
    """Bytes, the merges of WORDS with and without a leading space, then the specials."""
    merged = [left + right for left, right in bpe_merges()]
    return list(dict.fromkeys([*byte_alphabet(), *merged, *specials]))


def bpe_merges() -> list[tuple[str, str]]:
    """Merges that build every word of WORDS, with and without a leading space."""
    merges: dict[tuple[str, str], None] = {}
    for word in [*WORDS, *(SPACE + word for word in WORDS)]:
        parts = list(word)
        while len(parts) > 1:
            merges[(parts[0], parts[1])] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    return list(merges)


def bpe_tokenizer_files(
    class_name: str,
    specials: Sequence[str],
    *,
    pad: str,
    eos: str,
    bos: str | None = None,
    model_max_length: int = 4096,
    chat_template: str | None = None,
    **config: Any,
) -> TokenizerFiles:
    """Writes a byte-level BPE tokenizer's files: tokenizer.json, vocab.json, merges.txt, config.

    class_name: in transformers, e.g. Qwen2Tokenizer. specials: added tokens, in order; pad, eos
    and bos are some of them. chat_template: Jinja, as in released files.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(bpe_vocabulary(specials))}
    plain = {token: index for token, index in vocabulary.items() if token not in specials}
    tokenizer = Tokenizer(models.BPE(vocab=plain, merges=bpe_merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    names = {"pad_token": pad, "eos_token": eos} | ({"bos_token": bos} if bos else {})
    added = {
        str(vocabulary[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in specials
    }
    settings = {
        **names,
        "added_tokens_decoder": added,
        "add_prefix_space": False,
        "model_max_length": model_max_length,
        "tokenizer_class": class_name,
        **({"chat_template": chat_template} if chat_template else {}),
        **config,
    }

    def write(folder: Path) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "vocab.json", plain)
        merges = "\n".join(" ".join(pair) for pair in bpe_merges())
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        write_json(folder / "special_tokens_map.json", names)
        write_json(folder / "tokenizer_config.json", settings)

    return TokenizerFiles(class_name, write)
