"""FLUX.1 Kontext: how its control image is fitted to the sample, and what it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.pipelines._control_images import stretched_off_grid

SPEC = get_model("flux_kontext")
NOISE = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
RGBA = Image.fromarray(NOISE)
RGB = RGBA.convert("RGB")


@pytest.mark.parametrize(
    ("asked", "drawn", "fitted"),
    [
        ((104, 78), (96, 64), (104, 72)),
        ((112, 64), (112, 64), (112, 64)),
        ((20, 75), (64, 64), (64, 72)),
    ],
)
def test_the_picture_is_stretched_to_the_size_before_the_grid(ask, asked, drawn, fitted):
    settings = resolve(SPEC, ask(SPEC.id, width=asked[0], height=asked[1]))
    assert (settings.width, settings.height) == drawn
    picture = stretched_off_grid(RGBA, settings)
    assert picture.size == fitted
    expected = RGB.resize(fitted, Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_picture_of_that_size_is_left_as_it_is(ask):
    settings = resolve(SPEC, ask(SPEC.id, width=70, height=78))
    picture = RGB.resize((64, 72))
    assert np.array_equal(np.asarray(stretched_off_grid(picture, settings)), np.asarray(picture))


def draw(engine, ask, **fields):
    return engine.sample(ask(SPEC.id, **fields)).frames


def test_the_picture_shows_and_its_alpha_does_not(engine, ask):
    noise, blended, other = (
        draw(engine, ask, control_images=(picture,))
        for picture in (RGB, RGBA, Image.new("RGB", (64, 64), "red"))
    )
    assert np.array_equal(noise, blended)
    assert not np.array_equal(noise, other)


def test_sides_off_the_grid_show_through_the_picture_alone(engine, ask):
    on, off = (draw(engine, ask, width=w, control_images=(RGB,)) for w in (64, 72))
    assert on.shape == off.shape
    assert not np.array_equal(on, off)
    plain = Image.new("RGB", (70, 40), "red")
    on, off = (draw(engine, ask, width=w, control_images=(plain,)) for w in (64, 72))
    assert np.array_equal(on, off)


def test_it_uses_up_no_random_numbers(engine, ask, monkeypatch):
    drawn = []
    randn = torch.randn
    engine.sample(ask(SPEC.id))  # the model is built

    def watched(*args, **kwargs):
        drawn.append(args[0])
        return randn(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", watched)
    draw(engine, ask, width=96)
    assert [tuple(shape) for shape in drawn] == [(1, 16, 8, 12)]


def test_latents_and_picture_both_shape_what_is_drawn(engine, ask):
    start = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    fields = {"denoise": 0.5, "steps": 4, "width": 0, "height": 0}
    drawn = {
        draw(engine, ask, latents=latents, control_images=(picture,), **fields).tobytes()
        for latents in (start, -start)
        for picture in (RGB, Image.new("RGB", (64, 64), "red"))
    }
    assert len(drawn) == 4


def test_previews_are_of_the_sample_alone(engine, ask):
    previews = []
    plain = draw(engine, ask, width=96)
    seen = engine.sample(
        ask(SPEC.id, width=96), lambda step: previews.append(step.preview()), previews=True
    )
    assert np.array_equal(plain, seen.frames)
    assert [preview.shape for preview in previews] == [(8, 12, 3)] * 2
