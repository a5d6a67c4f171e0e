"""A toy Llama 3.1 and its tokenizer."""

from __future__ import annotations

from typing import Any

from ._tiny import TokenizerFiles, fill
from ._tiny_language import bpe_tokenizer_files, bpe_vocabulary

SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>")
# How Llama 3's tokenizer splits a text before merging, as its file says.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WIDTH = 32


def llama_tokenizer_files() -> TokenizerFiles:
    """Writes a Llama 3.1 tokenizer's files."""
    return bpe_tokenizer_files(
        "PreTrainedTokenizerFast",
        SPECIALS,
        pad="<|finetune_right_pad_id|>",
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        split=SPLIT,
        nfc=False,
    )


def llama(seed: int) -> Any:
    """A Llama of two layers, 32 wide, two heads to a key, with its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {token: index for index, token in enumerate(bpe_vocabulary(SPECIALS))}
    settings: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": ids["<|eot_id|>"],
        "tie_word_embeddings": False,
    }
    return fill(LlamaForCausalLM(LlamaConfig(**settings)), seed)
