"""Prompts become the trainer's token ids, and T5's attention the one transformers 4.57 computes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from ai_toolkit_inference.core.errors import MissingDependencyError
from ai_toolkit_inference.core.versions import get_profile
from ai_toolkit_inference.pipelines._text import clean_clip_prompt, t5_hidden, token_ids

TOKENS = json.loads(Path(__file__).with_name("tokens.json").read_text(encoding="utf-8"))["rows"]
T5 = json.loads(Path(__file__).with_name("t5.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")
TOKENIZERS = {
    "clip": ("sd15", "tokenizer"),
    "clip_2": ("sdxl", "tokenizer_2"),  # pads with `!`
    "t5": ("flux", "tokenizer_2"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("version", ["0.7.19", "0.12.26"])
@pytest.mark.parametrize("row", TOKENS)
def test_token_ids_are_the_trainers(load, row, version, kind):
    model, name = TOKENIZERS[kind]
    tokenizer = load(model).tokenizers[name]
    prompt = TOKENS[row]["prompt"]
    length = 512 if kind == "t5" else tokenizer.model_max_length
    if kind != "t5":
        prompt = clean_clip_prompt(prompt, get_profile(version))
    expected = TOKENS[row][version][kind]
    padding = [tokenizer.pad_token_id] * (length - len(expected))
    assert token_ids(tokenizer, prompt, length, CPU).tolist() == [expected + padding]


def test_the_profiles_differ_where_ftfy_repairs():
    repaired = [row for row in TOKENS.values() if row["0.7.19"]["clip"] != row["0.12.26"]["clip"]]
    assert len(repaired) > 5
    assert not [row for row in TOKENS.values() if row["0.7.19"]["t5"] != row["0.12.26"]["t5"]]


def test_without_ftfy_only_the_old_profile_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_clip_prompt("a cat", get_profile("0.12.26")) == "a cat"
    with pytest.raises(MissingDependencyError, match=r"0\.7\.19.*pip install ftfy"):
        clean_clip_prompt("a cat", get_profile("0.7.19"))


# --- T5 --------------------------------------------------------------------------------------


def distances(length: int, config) -> torch.Tensor:
    """The bucket of each (query, key) pair: near ones exact, far ones by their logarithm."""
    half = config.relative_attention_num_buckets // 2
    apart = torch.arange(length)[None] - torch.arange(length)[:, None]
    near = half // 2
    far = torch.log(apart.abs().clamp(min=1).float() / near)
    far = far / math.log(config.relative_attention_max_distance / near) * (half - near)
    far = (near + far.long()).clamp(max=half - 1)
    return half * (apart > 0) + torch.where(apart.abs() < near, apart.abs(), far)


def eager_t5(encoder, ids: torch.Tensor) -> torch.Tensor:
    """T5 with attention written out: unscaled, softmax in fp32, no mask."""
    stack, config = encoder.encoder, encoder.config
    attention = stack.block[0].layer[0].SelfAttention
    bias = attention.relative_attention_bias(distances(ids.shape[1], config))
    bias = bias.permute(2, 0, 1)[None]
    hidden = encoder.shared(ids)
    for block in stack.block:
        inner, feed_forward = block.layer[0], block.layer[1]
        attention, normed = inner.SelfAttention, inner.layer_norm(hidden)
        query, key, value = (
            part(normed).view(1, -1, config.num_heads, config.d_kv).transpose(1, 2)
            for part in (attention.q, attention.k, attention.v)
        )
        scores = torch.matmul(query, key.transpose(3, 2)) + bias
        weights = torch.softmax(scores.float(), dim=-1).type_as(scores)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(1, ids.shape[1], -1)
        hidden = feed_forward(hidden + attention.o(mixed))
    return stack.final_layer_norm(hidden)


def prompt_ids(encoder, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, encoder.shared.num_embeddings, (1, length), generator=generator)
    ids[0, length // 2 :] = 0
    return ids


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("length", [1, 64, 200, 512])
def test_t5_attends_eagerly_bit_for_bit(load, dtype, length):
    encoder = load("flux", dtype).modules["text_encoder_2"]
    ids = prompt_ids(encoder, length)
    with torch.no_grad():
        assert torch.equal(t5_hidden(encoder, ids), eager_t5(encoder, ids))


def test_t5_gives_what_transformers_4_57_gave(load):
    encoder = load("flux").modules["text_encoder_2"]
    with torch.no_grad():
        hidden = t5_hidden(encoder, torch.tensor([T5["ids"]]))[0, : len(T5["hidden"])]
    torch.testing.assert_close(hidden, torch.tensor(T5["hidden"]), rtol=0, atol=2e-5)


def test_other_t5_encoders_in_the_process_keep_their_own_attention(load):
    from transformers import T5EncoderModel

    ours = load("flux").modules["text_encoder_2"]
    other = T5EncoderModel(type(ours.config)(**ours.config.to_dict()))
    assert other.config._attn_implementation != ours.config._attn_implementation
