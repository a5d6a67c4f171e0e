"""Lumina 2: its prompts, Gemma 2's attention, its grid, guidance and starts from latents."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import lumina2
from ai_toolkit_inference.pipelines._flow import sigmas_left
from ai_toolkit_inference.pipelines._loading import check_folder, load_model
from ai_toolkit_inference.pipelines._text import _sdpa_attention


@pytest.fixture
def draw(engine, ask):
    """The picture's hash: draw("a cat", steps=2, ...)."""

    def draw(prompt="a photo of cat", **fields):
        result = engine.sample(ask("lumina2", prompt=prompt, **fields))
        return hashlib.sha256(result.frames.tobytes()).hexdigest()

    return draw


@pytest.fixture
def encode(load):
    """Hidden states and mask of a prompt."""
    context = SimpleNamespace(model=load("lumina2"))

    def encode(prompt):
        with torch.no_grad():
            return lumina2._encode(context, prompt)

    return encode


def test_the_system_prompt_comes_first_and_padding_last(load, encode):
    tokenizer = load("lumina2").tokenizers["tokenizer"]
    hidden, mask = encode("")
    assert hidden.shape == (1, 256, 32)
    assert mask.dtype == torch.int64
    used = int(mask.sum())
    assert mask[0].tolist() == [1] * used + [0] * (256 - used)
    ids = tokenizer([lumina2.PREFIX], return_tensors="pt").input_ids[0]
    assert used == len(ids)
    assert ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer.decode(ids[1:]) == lumina2.PREFIX
    shared = used - 1  # the prefix ends in a space, which is one token with what follows
    assert torch.equal(encode("a photo of cat")[0][:, :shared], hidden[:, :shared])  # causal


def test_a_prompt_counts_up_to_256_tokens(encode):
    ends = [encode("q " * 40 + end)[0] for end in ("a dog", "a cat")]
    assert not torch.equal(*ends)
    ends = [encode("q " * 300 + end) for end in ("a dog", "a cat")]
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1].all()


@pytest.mark.parametrize("padded", [False, True])
def test_gemma_attends_without_its_soft_cap(load, encode, monkeypatch, padded):
    prompt = "a cat" if padded else "q " * 300
    before, _ = encode(prompt)
    for layer in load("lumina2").modules["text_encoder"].layers:
        assert layer.self_attn.attn_logit_softcapping == 50.0
        monkeypatch.setattr(layer.self_attn, "attn_logit_softcapping", 0.01)
    assert torch.equal(encode(prompt)[0], before)


@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_are_causal(masked):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 5, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 5, 8, generator=generator)
    earlier = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = earlier[None, None] if masked else None
    found, _ = _sdpa_attention(torch.nn.Module(), query, key, value, mask, scaling=0.5, softcap=1)
    key, value = (torch.stack([x[:, head // 2] for head in range(4)], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.5).masked_fill(~earlier, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("asked", [63, 64, 71, 96, 1024])
def test_sides_on_the_grid_once_cut_to_8(ask, asked):
    settings = resolve(get_model("lumina2"), ask("lumina2", width=asked, height=asked))
    drawn = max(64, asked // 16 * 16)
    assert (settings.width, settings.height) == (drawn, drawn)


@pytest.mark.parametrize(
    ("prompt", "width", "message"),
    [
        ("a cat", 104, "width=104; the trainer makes it 104 and then fails.* use 96 or 112"),
        ("a cat --h 79", 64, "height=79; the trainer makes it 72 and then fails.* use 64 or 80"),
    ],
)
def test_sides_off_the_grid_are_refused(draw, prompt, width, message):
    with pytest.raises(InvalidInputError, match=message):
        draw(prompt, width=width)


def test_samplers_that_the_trainer_fails_on_are_refused(draw):
    assert draw(sampler="mean_flow") != draw(sampler="flowmatch") == draw()
    with pytest.raises(InvalidInputError, match=r"'euler'.*allowed: flowmatch, mean_flow"):
        draw(sampler="euler")


def test_guidance_starts_above_one(draw):
    for scale in (0.0, 1.0):
        assert draw(guidance_scale=scale, negative_prompt="blurry") == draw(guidance_scale=scale)
    assert draw(guidance_scale=1.5, negative_prompt="blurry") != draw(guidance_scale=1.5)


@pytest.mark.parametrize(
    ("steps", "denoise", "expected"),
    [(4, 1.0, [1, 0.75, 0.5, 0.25]), (4, 0.5, [0.5, 0.25]), (4, 0.1, [0.25]), (1, 0.5, [1])],
)
def test_denoise_leaves_out_the_first_steps(steps, denoise, expected):
    settings = SimpleNamespace(steps=steps, denoise=denoise)
    assert sigmas_left(settings).tolist() == expected


@pytest.mark.parametrize("model", ["lumina2", "flex2"])
def test_latents_are_the_start_of_fewer_steps(engine, ask, load, model):
    def frames(**fields):
        given = {"width": 0, "height": 0, "steps": 4} | fields
        steps = []
        result = engine.sample(ask(model, **given), on_step=steps.append)
        assert [step.index for step in steps] == list(range(1, len(steps) + 1))
        assert {step.total for step in steps} == {len(steps)}
        return result.frames

    one, two = (
        torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    half = [frames(latents=start, denoise=0.5) for start in (one, two, one)]
    assert np.array_equal(half[0], half[2])
    assert not np.array_equal(half[0], half[1])
    whole = frames(latents=one)
    assert np.array_equal(whole, frames(width=96, height=64))
    with torch.no_grad():
        picture = load(model).modules["vae"].decode(one).sample
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0).numpy()
    near = np.abs(frames(latents=one, denoise=0.02, steps=50)[0] - expected).mean()
    assert near < np.abs(whole[0] - expected).mean() / 2


@pytest.mark.parametrize("model", ["lumina2", "flex2"])
def test_previews_show_the_latents_and_change_nothing(engine, ask, model):
    previews = []
    request = ask(model, width=96, height=64)
    plain = engine.sample(request).frames
    seen = engine.sample(
        request, on_step=lambda step: previews.append(step.preview()), previews=True
    )
    assert np.array_equal(plain, seen.frames)
    assert [preview.shape for preview in previews] == [(8, 12, 3)] * 2
    assert all(preview.std() > 0 for preview in previews)


def test_the_index_may_name_the_class_by_its_older_name(tmp_path):
    spec = get_model("lumina2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    for name in ("Lumina2Text2ImgPipeline", "Lumina2Pipeline"):
        index.write_text(json.dumps(content | {"_class_name": name}))
        check_folder(spec, folder)
    index.write_text(json.dumps(content | {"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match="is a FluxPipeline checkpoint; lumina2 needs"):
        check_folder(spec, folder)


def test_the_tokenizer_is_chosen_by_its_own_configuration(tmp_path, load):
    spec = get_model("lumina2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"tokenizer": ["transformers", "GemmaTokenizer"]}))
    model = load_model(spec, folder, None, "fp32", torch.device("cpu"))
    expected = load("lumina2").tokenizers["tokenizer"]
    assert type(model.tokenizers["tokenizer"]) is type(expected)
    assert model.tokenizers["tokenizer"]("a cat").input_ids == expected("a cat").input_ids
