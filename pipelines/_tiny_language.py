"""Toy language models: byte-level BPE tokenizers as of Qwen, Llama and Mistral, and Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._tiny import WORDS, TokenizerFiles, byte_alphabet, fill, write_json

SPACE = "\u0120"  # how byte-level BPE writes a leading space
# How Qwen's tokenizers split a text before merging, as their files say. transformers 5 builds
# this splitting, and NFC before it, for the class whatever the file says; 4.57 follows the file.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# The released template's words for a conversation of plain messages.
QWEN3_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


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
    split: str = QWEN_SPLIT,
    nfc: bool = True,
    **config: Any,
) -> TokenizerFiles:
    """Writes a byte-level BPE tokenizer's files: tokenizer.json, vocab.json, merges.txt, config.

    class_name: in transformers, e.g. Qwen2Tokenizer. specials: added tokens, in order; pad, eos
    and bos are some of them; with bos, every text starts with it. chat_template: Jinja, as in
    released files. split: regular expression of the pieces in which a text is merged. nfc:
    whether it is normalized so before.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
    from tokenizers import pre_tokenizers as pieces

    vocabulary = {token: index for index, token in enumerate(bpe_vocabulary(specials))}
    plain = {token: index for token, index in vocabulary.items() if token not in specials}
    tokenizer = Tokenizer(models.BPE(vocab=plain, merges=bpe_merges()))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pieces.Sequence(
        [
            pieces.Split(Regex(split), behavior="isolated", invert=False),
            pieces.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, vocabulary[bos])],
        )
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


def qwen3_tokenizer_files() -> TokenizerFiles:
    """Writes a Qwen3 tokenizer's files, with its chat template."""
    return bpe_tokenizer_files(
        "Qwen2Tokenizer",
        QWEN3_SPECIALS,
        pad="<|endoftext|>",
        eos="<|im_end|>",
        chat_template=QWEN3_CHAT,
        unk_token=None,
    )


def qwen3(seed: int, layers: int = 3, width: int = 32, *, with_head: bool = False) -> Any:
    """A toy Qwen3: the language model alone, or with its head, which shares the embedding."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    ids = {token: index for index, token in enumerate(bpe_vocabulary(QWEN3_SPECIALS))}
    settings: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    build = Qwen3ForCausalLM if with_head else Qwen3Model
    return fill(build(Qwen3Config(**settings)), seed)
