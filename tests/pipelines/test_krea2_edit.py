"""Krea 2 editing: what its text encoder and its network see of pictures, in which versions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.versions import LATEST, Profile
from ai_toolkit_inference.pipelines._krea2 import Shown
from ai_toolkit_inference.pipelines._qwen3_vl_vision import Sight, _positions, cut, fit
from ai_toolkit_inference.pipelines.krea2_edit import _latents, reference_size, sight_size

BEFORE = Profile("0.10.21", "")
RAMP = Image.linear_gradient("L").convert("RGB").resize((96, 64))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), np.uint8))


@pytest.fixture
def draw(engine, ask):
    def draw(*images, model="krea2_o_edit_turbo", **fields):
        return engine.sample(ask(model, control_images=images, **fields)).frames.tobytes()

    return draw


# --- the whole ---------------------------------------------------------------------------------


def test_every_picture_counts(draw):
    orders = [(), (RAMP,), (RAMP, NOISE), (NOISE, RAMP)]
    assert len({draw(*images, steps=1) for images in orders}) == 4


def test_without_pictures_it_is_krea2(draw):
    assert draw(model="krea2_o_edit") == draw(model="krea2")


def test_a_jobs_ctrl_img_is_shown_twice_to_the_text_encoder(draw):
    assert draw(RAMP, doubled_control=True) != draw(RAMP)


def test_the_negative_prompt_sees_the_pictures_too(draw):
    drawn = {
        draw(RAMP, model="krea2_o_edit", guidance_scale=scale, negative_prompt=negative)
        for scale in (1.0, 4.0)
        for negative in ("", "blurry")
    }
    assert len(drawn) == 3  # at 1 it does not count


# --- versions ----------------------------------------------------------------------------------


def test_versions_without_editing_are_refused(engine, ask):
    request = ask("krea2_o_edit")
    old = replace(request, recipe=replace(request.recipe, trainer_version="0.7.19"))
    with pytest.raises(InvalidInputError, match=r"0\.7\.19 does not have Krea 2 Raw, editing yet"):
        engine.plan(old)
    known = [Profile(version, "").has("krea2_edit") for version in ("0.10.19", "0.10.20")]
    assert known == [False, True]


def test_only_edit_models_care_what_pictures_see():
    for model, cares in (("krea2", False), ("krea2_o_edit", True), ("krea2_o_edit_turbo", True)):
        arch = get_model(model).arch
        assert ("krea2_references_apart" in LATEST.changes(arch)) is cares
    assert "krea2_references_apart" not in BEFORE.changes("krea2:o_edit")


@pytest.mark.parametrize(
    ("profile", "size", "expected"),
    [
        (LATEST, (1000, 500), (96, 48)),  # of the sample's 64 x 64 px
        (LATEST, (20, 40), (48, 96)),
        (BEFORE, (1000, 500), (992, 496)),
        (BEFORE, (5, 40), (16, 32)),
        (BEFORE, (3000, 1500), (1456, 720)),
    ],
)
def test_the_network_sees_pictures_in_sizes_of_a_version(profile, size, expected, ask):
    settings = resolve(get_model("krea2_o_edit"), ask("krea2_o_edit"), profile)
    context = SimpleNamespace(settings=settings)
    assert reference_size(context, *size) == expected


@pytest.mark.parametrize(
    ("switches", "on"),
    [
        ({}, ["kv_cache", "match_target_res"]),
        ({"kv_cache": False}, ["match_target_res"]),
        ({"kv_cache": True, "match_target_res": False}, ["kv_cache"]),
    ],
)
def test_a_job_may_say_what_pictures_see_and_how_large_they_are(switches, on, ask):
    spec, asked = get_model("krea2_o_edit"), tuple(switches.items())
    assert [*resolve(spec, ask(spec.id, switches=asked), LATEST).switches] == on
    known = [name for name in on if name != "kv_cache" and name in switches]
    assert [*resolve(spec, ask(spec.id, switches=asked), BEFORE).switches] == known


def test_switches_of_other_models_are_refused(ask):
    with pytest.raises(InvalidInputError, match=r"krea2_o_edit 'x'; allowed: kv_cache, match"):
        resolve(get_model("krea2_o_edit"), ask("krea2_o_edit", switches=(("x", True),)))
    with pytest.raises(InvalidInputError, match=r"switch of krea2 'kv_cache'; allowed: none"):
        resolve(get_model("krea2"), ask("krea2", switches=(("kv_cache", True),)))


# --- the network -------------------------------------------------------------------------------


def predict(load, shown, times=(0.5,)):
    # the velocity of the last of some calls, at these times
    network = load("krea2_o_edit").modules["transformer"]
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 8, 8, generator=generator)
    text = torch.randn(1, 5, 12, 32, generator=generator)
    with torch.no_grad():
        calls = [network(latents, text, torch.tensor([time]), shown=shown) for time in times]
    return calls[-1]


def test_pictures_that_see_only_one_another_are_computed_once(load):
    pictures = tuple(torch.randn(1, 16, *size) for size in ((8, 12), (4, 6)))
    once, again = Shown(pictures, apart=True), Shown(pictures, apart=True)
    kept = predict(load, once, (0.9, 0.5))
    assert [key.shape for key, _ in once.kept] == [(1, 2, 24 + 6, 16)] * 2
    assert torch.allclose(kept, predict(load, again), atol=1e-5)
    together = Shown(pictures)
    assert not torch.allclose(kept, predict(load, together), atol=1e-3)
    assert together.kept == []


def test_latents_of_pictures_are_drawn(load):
    model = load("krea2_o_edit")
    context = SimpleNamespace(
        model=model,
        profile=LATEST,
        settings=SimpleNamespace(width=96, height=64, switches=("match_target_res",)),
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second, third = (
            [torch.manual_seed(seed), _latents(context, model.modules["vae"], RAMP)][1]
            for seed in (0, 0, 1)
        )
    assert first.shape == (1, 16, 8, 12)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# --- the text encoder --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [((150, 90), (150, 90)), ((2000, 1000), (543, 272)), ((10, 500), (28, 500))],
)
def test_the_text_encoder_sees_small_pictures(size, expected):
    assert sight_size(*size) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((90, 150), (224, 352)), ((384, 383), (384, 384)), ((9000, 4500), (5792, 2880))],
)
def test_sides_are_of_whole_tokens(size, expected):
    assert fit(*size) == expected


def test_patches_of_a_token_follow_one_another():
    image = torch.rand(3, 256, 288, generator=torch.Generator().manual_seed(0))
    sight = cut(image)
    assert (sight.rows, sight.columns, sight.tokens) == (16, 18, 72)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]):
        tile = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] * 2 - 1
        patch = sight.patches[number].view(3, 2, 16, 16)
        assert torch.allclose(patch, tile[:, None].expand(-1, 2, -1, -1), atol=1e-6)


def test_positions_go_on_behind_the_longer_side():
    sights = [Sight(torch.empty(0), 4, 6), Sight(torch.empty(0), 2, 2)]
    ids = [7, *[9] * 6, 7, 9, 7]
    assert _positions(ids, 9, sights)[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize(
    ("images", "fields", "words"),
    [
        ((RAMP,), {"prompt": "a <|image_pad|> cat"}, r"the prompt has <\|image_pad\|>"),
        ((RAMP,), {"negative_prompt": "<|video_pad|>"}, r"the prompt has <\|video_pad\|>"),
        ((RAMP, RAMP.resize((6000, 2))), {}, "control image 2 is 6000x2 px"),
    ],
)
def test_what_the_trainer_fails_on(draw, images, fields, words):
    with pytest.raises(InvalidInputError, match=words):
        draw(*images, **fields)
    assert draw(prompt="a <|image_pad|> cat")
