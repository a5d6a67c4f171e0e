"""Wan 2.1: sizes, schedules, prompts, and what it sees of the picture it starts from."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.versions import PROFILES
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import _wan
from ai_toolkit_inference.pipelines._loading import check_folder, load_model, part_path
from ai_toolkit_inference.pipelines._wan_image import ClipPixels, first_frame_condition
from ai_toolkit_inference.pipelines._wan_image import read_clip_pixels as read_pixels
from ai_toolkit_inference.pipelines._wan_spec import UMT5

OLD, NEW = PROFILES
CPU = torch.device("cpu")
CLIP = ClipPixels(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("asked", "drawn"), [(1, 1), (2, 1), (3, 1), (4, 5), (5, 5), (6, 5), (41, 41), (80, 81)]
)
def test_how_many_frames_are_drawn(asked, drawn):
    assert _wan.whole_frames(asked) == drawn


def test_the_frames_asked_for_are_drawn(engine, ask):
    result = engine.sample(ask("wan21_1b", num_frames=7, fps=8, steps=1))
    assert result.frames.shape == (5, 64, 64, 3)
    assert (result.info["num_frames"], result.info["fps"]) == (5, 8)


@pytest.mark.parametrize(("asked", "drawn"), [(1, 1), (4, 1), (5, 5), (8, 5)])
def test_low_vram_draws_no_more_frames_than_are_asked_for(engine, ask, asked, drawn):
    request = ask("wan21_1b", num_frames=asked, steps=1)
    recipe = replace(request.recipe, low_vram="on")
    assert len(engine.sample(replace(request, recipe=recipe)).frames) == drawn


@pytest.mark.parametrize("frames", [0, 4, 6])
def test_frames_that_the_trainer_fails_on_with_low_vram(ask, frames):
    request = ask("wan21_i2v_14b", num_frames=frames)
    resolve(get_model("wan21_i2v_14b"), request)
    lowered = replace(request, recipe=replace(request.recipe, low_vram="on"))
    if frames == 0:  # as many as the form has
        resolve(get_model("wan21_i2v_14b"), lowered)
        return
    with pytest.raises(InvalidInputError, match=rf"num_frames={frames} .*: use [15] or [59], or"):
        resolve(get_model("wan21_i2v_14b"), lowered)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_low_vram_starts_a_clip_from_a_picture_with_rounded_noise(engine, ask, dtype):
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    request = ask("wan21_i2v_14b", dtype=dtype, num_frames=5, control_images=(picture,))
    low, plain = (
        engine.sample(replace(request, recipe=replace(request.recipe, low_vram=low_vram))).frames
        for low_vram in ("on", "off")
    )
    assert low.shape == plain.shape
    assert (low != plain).any()


@pytest.mark.parametrize(("name", "side"), [("width", 104), ("height", 72), ("width", 111)])
def test_sides_that_the_trainer_fails_on(ask, name, side):
    with pytest.raises(InvalidInputError, match=rf"{name}={side}; .* multiples of 16: use"):
        resolve(get_model("wan21_1b"), ask("wan21_1b", **{name: side}))


def test_sides_of_a_clip_that_starts_from_a_picture_are_floored(ask):
    settings = resolve(get_model("wan21_i2v_14b"), ask("wan21_i2v_14b", width=111, height=72))
    assert (settings.width, settings.height) == (96, 64)


def test_noise_levels_of_unipc():
    levels = _wan.unipc_levels(25, 3.0)
    assert levels[:3] == pytest.approx([0.999666, 0.985963, 0.971489], abs=1e-6)
    assert levels[-1] == pytest.approx(3 * 0.03996 / (1 + 2 * 0.03996))
    scheduler = _wan.wan_scheduler(OLD, 25, 3.0, 5.0)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[:3].tolist() == [999, 985, 971]
    assert scheduler.sigmas[:25].numpy() == pytest.approx(levels)


def test_noise_levels_of_euler_are_shifted_twice():
    scheduler = _wan.wan_scheduler(NEW, 3, 5.0, 3.0)
    scheduler.set_timesteps(3)
    least = 3 / 1002  # 1 / 1000, shifted
    once = np.linspace(1.0, least, 3)
    expected = 3 * once / (1 + 2 * once)
    assert scheduler.sigmas.tolist() == pytest.approx([*expected, 0.0], rel=1e-5)


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_so_many_steps_that_unipc_fails(shift):
    with pytest.raises(InvalidInputError, match=r"steps=501; .* 0\.7\.19 fails; use 200 or less"):
        _wan.wan_scheduler(OLD, 501, shift, shift)
    for profile, steps in ((OLD, 200), (OLD, 1), (NEW, 501)):
        scheduler = _wan.wan_scheduler(profile, steps, shift, shift)
        scheduler.set_timesteps(steps)
        assert steps == 1 or scheduler.timesteps[0] != scheduler.timesteps[1]


def test_prompts_are_cleaned():
    dirty = " a cat\u2019s &amp;amp; dog\u00e2\u20ac\u2122s\n\n hat &lt;b&gt; "
    assert _wan.clean_prompt(dirty) == "a cat's & dog's hat <b>"
    assert _wan.clean_prompt("") == ""


def test_newer_versions_do_not_normalize_prompts(load):
    tokenizer = load("wan21_1b").tokenizers["tokenizer"]
    backend = tokenizer.backend_tokenizer
    before = backend.to_str()
    old, new, plain = (
        _wan.umt5_ids(tokenizer, prompt, profile)
        for prompt, profile in (("a cat\u00b2", OLD), ("a cat\u00b2", NEW), ("a cat2", NEW))
    )
    assert old == plain
    assert new == [*plain[:-2], 2, 1]  # unknown, end
    assert backend.to_str() == before


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.version)
def test_prompts_are_cut_and_zeroed_behind_their_end(load, profile):
    model = load("wan21_1b")
    tokenizer = model.tokenizers["tokenizer"]
    long = _wan.umt5_ids(tokenizer, "hat " * 600, profile)
    assert (len(long), long[-1], len(set(long[:-1]))) == (512, 1, 1)
    context = SimpleNamespace(model=model, profile=profile)
    for prompt in ("", "a photo of cat"):
        embeds = _wan.umt5_embeds(context, prompt)
        length = len(_wan.umt5_ids(tokenizer, prompt, profile))
        assert embeds.shape == (1, 512, 32)
        assert embeds[0, :length].abs().sum(dim=1).all()
        assert not embeds[0, length:].any()


def test_the_encoder_attends_the_same_way_in_every_library(load):
    encoder = load("wan21_1b").modules["text_encoder"]
    assert encoder.encoder.config._attn_implementation == "ai_toolkit_inference_t5"


def test_the_negative_prompt_is_read_where_there_is_guidance(load):
    model = load("wan21_1b")
    for guidance, texts in ((1.0, 1), (1.5, 2)):
        settings = SimpleNamespace(prompt="a", negative_prompt="", guidance_scale=guidance)
        context = SimpleNamespace(model=model, profile=NEW, settings=settings)
        assert len(_wan.guided_texts(context)) == texts


def test_which_norms_round_in_bf16(load):
    from contextlib import nullcontext

    vae = load("wan21_1b", "bf16").modules["vae"]
    norm = next(x for x in vae.modules() if type(x).__name__ == "WanRMS_norm")
    values = torch.linspace(-3, 3, 5 * len(norm.gamma)).view(1, -1, 5, 1, 1).bfloat16()
    outputs = {}
    for profile in PROFILES:
        context = SimpleNamespace(profile=profile, place=lambda _: nullcontext())
        with _wan.placed(context, SimpleNamespace(vae=vae)):
            outputs[profile.version] = norm(values)
    assert not torch.equal(*outputs.values())
    assert torch.equal(outputs[NEW.version], norm(values))


def test_frames_are_rounded_as_diffusers_does():
    from diffusers.video_processor import VideoProcessor

    video = torch.linspace(-1.1, 1.1, 3 * 2 * 8 * 16).view(3, 2, 8, 16).bfloat16()
    pictures = VideoProcessor().postprocess_video(video[None], output_type="pil")[0]
    assert np.array_equal(_wan.video_frames(video), np.stack([np.asarray(x) for x in pictures]))


# --- a picture to start from -----------------------------------------------------------------


def pattern(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    levels = np.stack([(x * 7 + y * 3) % 256, (x * x // 5 + y) % 256, (x ^ y) % 256], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


# What CLIPImageProcessor gave in the trainer's own environments, transformers 4.57.3 with Pillow
# and 5.5.3 with torchvision 0.28.0.
@pytest.mark.parametrize(
    ("profile", "size", "digest"),
    [
        (OLD, (80, 64), "3dff9b45e6259b86"),
        (OLD, (480, 832), "80d99b3f237e16cc"),
        (OLD, (227, 333), "7c9fa1e184b78e4d"),
        (NEW, (80, 64), "1a727554d8f866ce"),
        (NEW, (480, 832), "88078db589e6b66e"),
        (NEW, (227, 333), "a3b7adf04bed3aac"),
    ],
    ids=lambda value: getattr(value, "version", None),
)
def test_the_pixels_that_clip_sees(profile, size, digest):
    pixels = CLIP.of(pattern(*size), profile)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 224, 224), torch.float32)
    data = np.ascontiguousarray(pixels.numpy()).tobytes()
    assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_clip_pixels_are_read_from_the_checkpoint(tmp_path):
    assert read_pixels(tiny_folder(get_model("wan21_i2v_14b")) / "image_processor") == CLIP
    config = {"size": {"height": 224, "width": 224}, "crop_size": {"height": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="resizes to"):
        read_pixels(tmp_path)


def test_what_the_network_is_shown_of_the_picture(load):
    model = load("wan21_i2v_14b")
    settings = SimpleNamespace(num_frames=6, width=64, height=80)
    context = SimpleNamespace(model=model, settings=settings)
    shown = first_frame_condition(context, model.modules["vae"], pattern(64, 80))
    assert (shown.shape, shown.dtype) == ((1, 20, 2, 10, 8), torch.float32)
    mask = shown[:, :4]
    assert mask[:, :, 0].eq(1).all()
    assert not mask[:, :, 1].any()
    other = first_frame_condition(context, model.modules["vae"], pattern(64, 80).rotate(180))
    assert not torch.equal(other[:, 4:, 0], shown[:, 4:, 0])


def test_the_picture_changes_the_clip(engine, ask):
    one, other = (
        engine.sample(ask("wan21_i2v_14b", steps=1, control_images=(picture,))).frames
        for picture in (pattern(64, 64), pattern(64, 64).rotate(180))
    )
    assert one.shape == (5, 64, 64, 3)
    assert not np.array_equal(one, other)


# --- checkpoints -----------------------------------------------------------------------------


def test_the_text_encoder_may_come_from_the_trainers_repository(tmp_path):
    spec = get_model("wan21_1b")
    folder = tmp_path / "wan"
    shutil.copytree(tiny_folder(spec), folder)
    assert part_path(spec, folder, "text_encoder") == str(folder / "text_encoder")
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
        assert part_path(spec, folder, name) == UMT5
    check_folder(spec, folder)


def test_an_image_encoder_without_all_of_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    spec = get_model("wan21_i2v_14b")
    folder = tmp_path / "wan"
    shutil.copytree(tiny_folder(spec), folder)
    file = folder / "image_encoder" / "model.safetensors"
    tensors = load_file(file)
    assert all(name.startswith("vision_model.") for name in tensors)
    del tensors["vision_model.pre_layrnorm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"image_encoder lacks 1 of \d+ tensors"):
        load_model(spec, folder, None, "fp32", CPU)
