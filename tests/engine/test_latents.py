"""Starting from latents: the size they give, the share of the steps, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.engine.latents import empty_latents
from ai_toolkit_inference.pipelines._vendor import trainer_folder

NAN = float("nan")
IMAGE_MODELS = [spec.id for spec in list_models() if spec.task != "video"]
CLIP_MODELS = [spec.id for spec in list_models() if spec.task == "video"]


def latents(channels: int = 4, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator)


@pytest.fixture
def draw(engine, ask):
    def draw(model="sd15", **fields):
        fields = {"width": 0, "height": 0, "steps": 4} | fields
        return engine.sample(ask(model, **fields)).frames

    return draw


@pytest.mark.parametrize(("model", "channels"), [("sd15", 4), ("sdxl", 4), ("flux", 16)])
def test_latents_decide_the_size_and_below_one_the_picture(draw, model, channels):
    one, two = (latents(channels, 10, 12, seed) for seed in (1, 2))
    plain = draw(model, width=96, height=80)
    whole = [draw(model, latents=start) for start in (one, two)]
    assert np.array_equal(whole[0], plain)
    assert np.array_equal(whole[1], plain)
    half = [draw(model, latents=start, denoise=0.5) for start in (one, two, one)]
    assert half[0].shape == (1, 80, 96, 3)
    assert np.array_equal(half[0], half[2])
    assert not np.array_equal(half[0], half[1])


@pytest.mark.parametrize("model", IMAGE_MODELS)
def test_of_every_image_model(engine, draw, model):
    """Empty latents change nothing but the size; a picture's are what sampling starts from."""
    spec = get_model(model)
    if spec.network and trainer_folder() is None:
        pytest.skip(f"{model}'s network is the trainer's own code, which is not here")
    plain = draw(model, width=128, height=128)
    assert np.array_equal(draw(model, latents=empty_latents(spec, 128, 128)), plain)
    recipe = Recipe(model, "tiny", "fp32")
    start = engine.encode(recipe, Image.linear_gradient("L").convert("RGB").resize((128, 128)))
    assert (start.shape, start.dtype) == ((1, spec.latent_channels, 16, 16), torch.float32)
    picture = engine.decode(recipe, start)
    assert (picture.shape, picture.dtype) == ((1, 128, 128, 3), np.uint8)
    near = draw(model, latents=start, denoise=0.02, steps=50)
    assert _distance(near, picture) < _distance(plain, picture)


def _distance(one, other):
    return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize("model", CLIP_MODELS)
def test_clips_have_no_latents(engine, model):
    recipe = Recipe(model, "tiny")
    for refused in (
        lambda: empty_latents(get_model(model), 64, 64),
        lambda: engine.encode(recipe, Image.new("RGB", (64, 64))),
        lambda: engine.decode(recipe, latents()),
    ):
        with pytest.raises(InvalidInputError, match="draws clips"):
            refused()


def test_the_size_of_empty_latents_is_a_samples():
    for asked, shape in (((0, 0), (128, 128)), ((70, 1), (8, 8)), ((1000, 520), (64, 124))):
        assert empty_latents(get_model("flux"), *asked).shape[2:] == shape


def test_a_picture_off_the_grid_is_refused(engine):
    picture = Image.new("RGB", (100, 200))
    with pytest.raises(InvalidInputError, match=r"100x200 px; for flux .* of 16 .* as 96x192"):
        engine.encode(Recipe("flux", "tiny"), picture)


def test_a_decoded_picture_is_rounded_as_samples_are(engine, load):
    start, vae = latents(), load("sd15").modules["vae"]
    with torch.no_grad():
        expected = (vae.decode(start).sample / 2 + 0.5).clamp(0, 1) * 255
    picture = engine.decode(Recipe("sd15", "tiny", "fp32"), start)
    assert np.array_equal(picture[0], expected[0].permute(1, 2, 0).round().byte().numpy())


@pytest.mark.parametrize(("model", "shift"), [("sd15", 0.0), ("flux", 0.1159)])
def test_few_steps_stay_near_the_latents(load, draw, model, shift):
    """What the VAE makes of the latents, and not of latents scaled twice or not at all."""
    vae = load(model).modules["vae"]
    start = latents(vae.config.latent_channels)
    with torch.no_grad():
        picture = vae.decode(start).sample
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0).numpy()
    near, far = (
        np.abs(draw(model, latents=start, denoise=share, steps=50)[0] - expected).mean()
        for share in (0.02, 1.0)
    )
    assert near < far / 2
    assert vae.config.shift_factor in (None, shift)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_still_counts(draw, seed):
    start = latents()
    assert not np.array_equal(
        draw(latents=start, denoise=0.5, seed=seed), draw(latents=start, denoise=0.5, seed=seed + 1)
    )


def test_the_given_latents_are_left_as_they_were(draw):
    start = latents()
    before = start.clone()
    draw(latents=start, denoise=0.5)
    assert torch.equal(start, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_float(draw, dtype):
    start = latents().to(dtype)
    assert np.array_equal(
        draw(latents=start, denoise=0.5), draw(latents=start.float(), denoise=0.5)
    )


@pytest.mark.parametrize(
    ("model", "start", "message"),
    [
        ("sd15", latents(16), r"\[1, 16, 8, 8\]; sd15 takes one image: \(1, 4, H/8, W/8\)"),
        ("flux", latents(4), r"\(1, 16, H/8, W/8\)"),
        ("sd15", latents().expand(2, -1, -1, -1), r"\[2, 4, 8, 8\]"),
        ("sd15", latents()[0], r"\[4, 8, 8\]"),
        ("sd15", latents()[:, :, None], r"\[1, 4, 1, 8, 8\]"),
        ("sd15", latents(height=0), "latents of 64x0 px"),
        ("sd15", latents(width=7), "latents of 56x64 px"),
        ("flux", latents(16, 9, 8), "multiples of 16"),
        ("sd15", torch.zeros(1, 4, 1, 1).expand(1, 4, 8, 2049), "from 64 to 16384"),
        ("sd15", torch.full((1, 4, 8, 8), NAN), "NaN or infinite"),
        ("sd15", torch.full((1, 4, 8, 8), -float("inf")), "NaN or infinite"),
        ("sd15", torch.zeros(1, 4, 8, 8, dtype=torch.int64), "torch.int64"),
        ("sd15", np.zeros((1, 4, 8, 8), np.float32), "ndarray"),
        ("sd15", "latents.pt", "str"),
    ],
)
@pytest.mark.parametrize("denoise", [0.5, 1.0])
def test_latents_that_do_not_fit(draw, model, start, message, denoise):
    with pytest.raises(InvalidInputError, match=message):
        draw(model, latents=start, denoise=denoise)


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 128},
        {"height": 72},
        {"prompt": "a cat --w 128"},
        {"prompt": "a cat --h 63"},
        {"prompt": "a [trigger]", "trigger_word": "cat --w 128"},
    ],
)
def test_a_size_that_disagrees(draw, fields):
    with pytest.raises(InvalidInputError, match="but the latents are 64 px"):
        draw(latents=latents(), denoise=0.5, **fields)
    draw(latents=latents(), width=64, prompt="a cat --h 64", steps=1)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_share_without_a_step(draw, model):
    with pytest.raises(InvalidInputError, match="leaves none to run"):
        draw(model, latents=latents(), denoise=0.24)
    assert draw(model, latents=latents(), denoise=0.26).any()
