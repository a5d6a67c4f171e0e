"""Pictures shown to FLUX.2: their sizes, their tokens, and those that are refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.pipelines._flux2_references import _pixels, reference_tokens
from ai_toolkit_inference.pipelines.flux2 import to_tokens

RAMP = Image.linear_gradient("L").convert("RGB")


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_every_picture_counts(engine, ask):
    def draw(*images):
        return engine.sample(ask("flux2", control_images=images)).frames.tobytes()

    one, two = picture(64, 80), picture(96, 64)
    assert len({draw(), draw(one), draw(one, two), draw(two, one)}) == 4


def test_a_small_picture_is_cut_to_whole_tokens():
    image = picture(105, 70)
    expected = np.asarray(image)[3:67, 4:100].transpose(2, 0, 1)
    assert np.array_equal(((_pixels(image)[0] + 1) * 127.5).round().numpy(), expected)


def test_a_large_picture_is_shrunk_first():
    image = picture(2000, 1500)
    shrunk = np.asarray(image.resize((1182, 886), Image.Resampling.LANCZOS))
    pixels = _pixels(image)
    assert pixels.shape == (1, 3, 880, 1168)
    expected = shrunk[3:883, 7:1175].transpose(2, 0, 1)
    assert np.array_equal(((pixels[0] + 1) * 127.5).round().numpy(), expected)


def test_tokens_are_bf16_and_each_picture_has_frames_of_its_own(load):
    model = load("flux2")
    context = SimpleNamespace(model=model, control_images=(picture(64, 80), RAMP))
    state = torch.get_rng_state()
    with torch.no_grad():
        tokens, positions = reference_tokens(context, model.modules["vae"])
        mode = model.modules["vae"].encode(_pixels(RAMP)).latent_dist.mode()
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
    assert (tokens.shape, tokens.dtype) == ((1, 20 + 256, 128), torch.bfloat16)
    assert positions[[0, 4, 19, 20, -1]].tolist() == [
        [10, 0, 0, 0], [10, 1, 0, 0], [10, 4, 3, 0], [20, 0, 0, 0], [20, 15, 15, 0],
    ]  # fmt: skip
    expected = to_tokens(model.modules["vae"], mode).flatten(2).mT
    assert torch.allclose(tokens[:, 20:].float(), expected, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize(
    ("size", "dtype", "words"),
    [
        ((63, 90), "fp32", "control image 1 is 63x90 px; flux2_klein_4b takes sides of 64 px"),
        ((577, 72), "fp32", "at most 8 times the shorter"),
        ((64, 64), "fp16", "in fp16: .*use dtype bf16 or fp32"),
    ],
)
def test_pictures_that_the_trainer_fails_on(engine, ask, size, dtype, words):
    with pytest.raises(InvalidInputError, match=words):
        image = picture(*size)
        engine.sample(ask("flux2_klein_4b", dtype=dtype, control_images=(image,)))
