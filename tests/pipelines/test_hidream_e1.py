"""HiDream E1: how it sees the picture it edits, its guidance, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.pipelines.hidream_e1 import check_hidream_e1, guided


def picture(*size: int) -> Image.Image:
    """Coloured noise."""
    colours = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(colours)


@pytest.fixture
def network_inputs(engine, ask):
    """What the network is given in the one step of a request."""

    def network_inputs(**fields):
        request = ask("hidream_e1", steps=1, **fields)
        calls = []
        network = engine.model(request.recipe).modules["transformer"]
        hook = network.register_forward_pre_hook(
            lambda _module, _args, given: calls.append(given), with_kwargs=True
        )
        with hook:
            engine.sample(request)
        (given,) = calls
        return given

    return network_inputs


def test_the_picture_stands_at_the_right_of_two_of_three(network_inputs):
    given = network_inputs(negative_prompt="blurry", guidance_scale=4.0, width=96)
    hidden = given["hidden_states"]
    assert hidden.shape == (3, 16, 8, 24)
    noise, seen = hidden.split(12, dim=-1)
    assert noise[0].equal(noise[1]) and noise[0].equal(noise[2])
    assert not seen[0].any()
    assert seen[1].equal(seen[2]) and seen[1].any()
    texts = (given["pooled_embeds"], given["encoder_hidden_states_t5"])
    for text in (*texts, given["encoder_hidden_states_llama3"].transpose(0, 1)):
        assert text[0].equal(text[2]) and not text[0].equal(text[1])


def test_guidance_at_one_leaves_two_of_three_out(network_inputs):
    hidden = network_inputs(guidance_scale=1.0)["hidden_states"]
    assert hidden.shape == (1, 16, 8, 16)
    assert hidden[..., 8:].any()


def test_guidance_by_the_prompt_is_no_longer_than_without():
    def pixel(*values):
        return torch.tensor(values).reshape(1, 2, 1, 1)

    prompted, blind = pixel(3.0, 4.0), pixel(1.0, 1.0)
    shortened = guided(blind, pixel(0.0, 0.0), prompted, 4.0)  # of (12, 16)
    assert shortened.flatten().tolist() == pytest.approx([5.0, 7.0])
    short = guided(blind, pixel(6.0, 8.0), prompted, 1.5)  # (1.5, 2) stays
    assert short.flatten().tolist() == pytest.approx([2.0, 3.0])


def test_the_picture_is_stretched_and_then_cut_to_the_grid(engine, ask):
    def draw(image):
        asked = ask("hidream_e1", width=104, height=72, steps=1, control_images=(image,))
        return engine.sample(asked).frames

    original = picture(150, 40)
    drawn = draw(original)
    assert drawn.shape == (1, 64, 96, 3)
    bilinear = Image.Resampling.BILINEAR
    assert np.array_equal(drawn, draw(original.resize((104, 72), bilinear)))
    assert not np.array_equal(drawn, draw(original.resize((96, 64), bilinear)))


def test_alpha_is_dropped(engine, ask):
    opaque, clear = picture(64, 64), picture(64, 64)
    clear.putalpha(7)
    drawn = [
        engine.sample(ask("hidream_e1", steps=1, control_images=(image,))).frames
        for image in (opaque, clear, picture(32, 80))
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_as_many_tokens_as_the_network_takes(engine, ask):
    def draw(width, height):
        return engine.sample(ask("hidream_e1", width=width, height=height, steps=1)).frames

    assert draw(256, 256).shape == (1, 256, 256, 3)
    with pytest.raises(InvalidInputError, match=r"272x256 px are 544 tokens .* 512, .* 65536 pix"):
        draw(272, 256)
    # a square with the picture beside it, which the network does not pad
    assert draw(192, 384).shape == (1, 384, 192, 3)


def test_latents_to_start_from(engine, ask):
    start = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [
        engine.sample(ask("hidream_e1", latents=start, denoise=denoise, steps=4)).frames
        for denoise in (0.25, 0.5, 1.0)
    ]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_as_many_steps_as_the_trainer_can():
    check_hidream_e1(SimpleNamespace(steps=1))
    check_hidream_e1(SimpleNamespace(steps=375))
    with pytest.raises(InvalidInputError, match="steps=376"):
        check_hidream_e1(SimpleNamespace(steps=376))


def test_it_needs_a_picture(engine, ask):
    with pytest.raises(InvalidInputError, match="hidream_e1 needs 1 control image, got 0"):
        engine.sample(ask("hidream_e1", control_images=()))
