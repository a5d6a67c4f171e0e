"""Qwen-Image: its schedule, prompts, guidance, VAE and what a start from latents does."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.versions import PROFILES
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._qwen_vae import norms_of
from ai_toolkit_inference.pipelines._schedulers import flow_match_scheduler
from ai_toolkit_inference.pipelines.qwen_image import SCHEDULER

OLD, NEW = PROFILES


@pytest.fixture
def draw(engine, ask):
    """The picture's hash: draw("a cat", steps=2, ...)."""

    def draw(prompt="a photo of cat", version=NEW.version, **fields):
        request = ask("qwen_image", prompt=prompt, **fields)
        request = replace(request, recipe=replace(request.recipe, trainer_version=version))
        return hashlib.sha256(engine.sample(request).frames.tobytes()).hexdigest()

    return draw


@pytest.mark.parametrize("model", ["qwen_image", "qwen_image_edit", "krea2"])
def test_low_vram_is_tiles_of_256_px_in_newer_versions(engine, ask, model):
    def draw(low_vram, version=NEW.version, **size):
        request = ask(model, **({"width": 288} | size))
        recipe = replace(request.recipe, low_vram=low_vram, trainer_version=version)
        result = engine.sample(replace(request, recipe=recipe))
        assert result.info["low_vram"] == (low_vram != "off")  # as in jobs of the trainer's form
        return hashlib.sha256(result.frames.tobytes()).hexdigest()

    assert draw("auto") == draw("on") != draw("off")
    assert draw("on", width=128) == draw("off", width=128)
    if model != "krea2":  # which came later
        assert draw("on", OLD.version) == draw("off", OLD.version)
    between = [replace(NEW, version=version) for version in ("0.10.21", "0.10.22")]
    assert [profile.has("qwen_tiled_vae") for profile in between] == [False, True]


def test_the_steps_of_a_square_megapixel():
    scheduler = flow_match_scheduler(SCHEDULER)
    slope = (0.9 - 0.5) / (8192 - 256)
    mu = 0.5 + slope * (64 * 64 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 25, 25), mu=mu)
    assert mu == pytest.approx(0.69355, abs=1e-5)
    assert scheduler.sigmas[:3].tolist() == pytest.approx([1, 0.97834, 0.95578], abs=1e-5)
    assert scheduler.sigmas[-3:].tolist() == pytest.approx([0.09564, 0.02, 0], abs=1e-5)


@pytest.mark.parametrize(("asked", "drawn"), [(64, 64), (95, 64), (104, 96), (1048, 1024)])
def test_sides_are_multiples_of_32(ask, asked, drawn):
    settings = resolve(get_model("qwen_image"), ask("qwen_image", width=asked, height=asked))
    assert (settings.width, settings.height) == (drawn, drawn)


def test_one_step_is_refused(draw):
    with pytest.raises(InvalidInputError, match="steps=1; Qwen-Image needs at least 2"):
        draw("a cat --steps 1")


def test_a_prompt_counts_up_to_512_tokens(draw):
    for count, same in ((300, False), (600, True)):  # of one token each
        ends = [draw("q " * count + end, guidance_scale=1.0) for end in ("a dog", "a cat")]
        assert (ends[0] == ends[1]) is same


def test_guidance_starts_above_one(draw):
    for scale in (0.0, 1.0):
        assert draw(guidance_scale=scale, negative_prompt="blurry") == draw(guidance_scale=scale)
    assert draw(guidance_scale=1.5, negative_prompt="blurry") != draw(guidance_scale=1.5)
    assert draw(guidance_scale=1.0) == draw(guidance_scale=0.5) != draw(guidance_scale=1.5)


def test_versions_differ_in_how_the_vae_rounds(draw):
    same = [draw(version=profile.version) for profile in PROFILES]
    assert same[0] == same[1]
    bf16 = [draw(version=profile.version, dtype="bf16") for profile in (OLD, NEW, OLD, NEW)]
    assert bf16[:2] == bf16[2:]
    assert bf16[0] != bf16[1]


def test_the_older_norm_lasts_as_long_as_asked(load):
    vae = load("qwen_image", "bf16").modules["vae"]
    norm = vae.decoder.norm_out
    x = torch.randn(1, len(norm.gamma), 1, 5, 7, generator=torch.manual_seed(0)).bfloat16()
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    older = unit * norm.scale * norm.gamma + norm.bias
    newer = norm(x)
    assert not torch.equal(older, newer)
    with pytest.raises(KeyError), norms_of(vae, OLD):
        assert torch.equal(norm(x), older)
        raise KeyError
    assert torch.equal(norm(x), newer)
    with norms_of(vae, NEW):
        assert torch.equal(norm(x), newer)


def test_the_vision_tower_is_left_out(load):
    encoder = load("qwen_image").modules["text_encoder"]
    assert encoder.model.visual is None
    stored = load_file(tiny_folder(get_model("qwen_image")) / "text_encoder" / "model.safetensors")
    starts = {".".join(name.split(".")[:2]) for name in stored}
    assert {"model.layers", "model.embed_tokens", "lm_head.weight", "visual.blocks"} <= starts
    assert not [name for name in stored if name.startswith("model.language_model")]


def test_a_text_encoder_with_a_tensor_missing_is_refused(tmp_path, ask):
    folder = shutil.copytree(tiny_folder(get_model("qwen_image")), tmp_path / "model")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ tensors.*layers\.1\.mlp\.up_proj"):
        Engine("cpu").sample(ask("qwen_image", weights=folder))


def test_latents_are_the_start_of_fewer_steps(engine, ask, draw, load):
    one, two = (
        torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    size = {"width": 0, "height": 0, "steps": 4}
    assert draw(latents=one, **size) == draw(width=96, height=64, steps=4)
    half = [draw(latents=start, denoise=0.5, **size) for start in (one, two, one)]
    assert half[0] == half[2] != half[1]

    config = load("qwen_image").modules["vae"].config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    with torch.no_grad():
        vae = load("qwen_image").modules["vae"]
        picture = vae.decode((one * std + mean)[:, :, None]).sample[0, :, 0]
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    near, far = (
        np.abs(
            engine.sample(
                ask("qwen_image", latents=one * std + mean, denoise=share, **(size | {"steps": 50}))
            ).frames[0]
            - expected
        ).mean()
        for share in (0.02, 1.0)
    )
    assert near < far / 2


def test_previews_show_the_latents_and_change_nothing(engine, ask):
    previews = []
    request = ask("qwen_image", width=96, height=64, steps=3)
    plain = engine.sample(request).frames
    seen = engine.sample(
        request, on_step=lambda step: previews.append(step.preview()), previews=True
    )
    assert np.array_equal(plain, seen.frames)
    assert [(preview.shape, preview.dtype) for preview in previews] == [((8, 12, 3), np.uint8)] * 3
    assert all(preview.std() > 0 for preview in previews)


@pytest.fixture
def beside(tmp_path):
    """A folder with all parts but the transformer's weights, and these."""
    folder = shutil.copytree(tiny_folder(get_model("qwen_image")), tmp_path / "qwen")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = load_file(weights)
    weights.unlink()
    return folder, stored


def test_the_transformer_as_a_file_beside_the_other_parts(beside, draw):
    """As the trainer loads one."""
    folder, stored = beside
    save_file(stored, folder / "qwen_image.safetensors")
    size = {"width": 64, "height": 64, "steps": 2, "dtype": "bf16"}
    from_file = draw(weights=folder / "qwen_image.safetensors", **size)
    assert from_file == draw(weights="tiny", **size)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "x."])
def test_a_file_that_the_trainer_cannot_read_is_refused(beside, draw, prefix):
    folder, stored = beside
    file = folder / "qwen_image.safetensors"
    save_file({prefix + name: value for name, value in stored.items()}, file)
    with pytest.raises(CheckpointError, match="lacks transformer"):
        draw(weights=file)
