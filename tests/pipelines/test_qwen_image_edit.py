"""Qwen-Image-Edit and Edit Plus: how control images reach the text encoder and the VAE."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.versions import PROFILES
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import _qwen_edit, qwen_image_edit
from ai_toolkit_inference.pipelines._qwen_edit import (
    VAE_PIXELS,
    PictureReader,
    as_tensor,
    read_picture_reader,
    sides_of_area,
    to_area,
)

OLD, NEW = PROFILES
EDIT, PLUS, NEWER = (spec.id for spec in qwen_image_edit.MODELS)
READER = PictureReader(14, 2, 2, 56 * 56, 12_845_056, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
RGBA = Image.fromarray(NOISE)
RGB = RGBA.convert("RGB")
TALL = RGB.resize((40, 90))


@pytest.fixture
def draw(engine, ask):
    """The picture's hash: draw(PLUS, version=..., control_images=..., ...)."""

    def draw(model=EDIT, version=NEW.version, **fields):
        request = ask(model, **({"control_images": (RGB,), "guidance_scale": 3.0} | fields))
        request = replace(request, recipe=replace(request.recipe, trainer_version=version))
        return hashlib.sha256(engine.sample(request).frames.tobytes()).hexdigest()

    return draw


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("area", "ratio", "sides"),
    [
        (1024 * 1024, 1.0, (1024, 1024)),
        (1024 * 1024, 1.5, (1248, 832)),
        (384 * 384, 9 / 16, (288, 512)),
        (384 * 384, 4.0, (768, 192)),
    ],
)
def test_sides_of_an_area(area, ratio, sides):
    assert sides_of_area(area, ratio) == sides


@pytest.mark.parametrize("ratio", [1e4, 1e-4])
def test_a_picture_without_a_second_side_is_refused(ratio):
    with pytest.raises(InvalidInputError, match=r"sides of \d+ and \d+ px, too long"):
        sides_of_area(384 * 384, ratio)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((384, 384), (392, 392)),  # to whole tokens of 28 px
        ((1248, 832), (1260, 840)),
        ((28, 32), (56, 84)),  # up to the least, never below
        ((14, 42), (56, 112)),  # halves go to the even number
        ((4000, 4000), (3584, 3584)),  # down to the most
    ],
)
def test_the_size_that_the_text_encoder_is_shown(given, shown):
    assert READER.size(*given) == shown


def test_what_the_text_encoder_takes_no_longer_is_refused():
    with pytest.raises(InvalidInputError, match="sides of 32 and 6432 px, too long"):
        READER.size(32, 32 * 201)


@pytest.mark.parametrize(
    ("model", "area", "longest"), [(EDIT, 1024 * 1024, 163), (PLUS, 384 * 384, 279)]
)
def test_longer_pictures_are_refused_before_anything_is_loaded(ask, model, area, longest):
    READER.size(*sides_of_area(area, longest))
    sides_of_area(VAE_PIXELS, longest)
    with pytest.raises(InvalidInputError, match="too long"):
        READER.size(*sides_of_area(area, longest + 1))
    unloaded = Engine("cpu")
    for size in ((longest, 1), (2, 2 * longest)):
        unloaded.plan(ask(model, control_images=(Image.new("RGB", size),)))
    words = rf"control image 1 is {longest + 1}x1 px; .* at most {longest} times"
    with pytest.raises(InvalidInputError, match=words):
        unloaded.plan(ask(model, control_images=(Image.new("RGB", (longest + 1, 1)),)))
    assert unloaded.loads == 0


def test_old_trainers_swap_the_sides():
    picture = as_tensor(Image.new("RGB", (160, 80)), "cpu", torch.float32)
    assert to_area(picture, 384 * 384, NEW).shape[2:] == (256, 544)
    swapped = to_area(picture, 384 * 384, OLD)
    assert swapped.shape[2:] == (544, 256)
    assert to_area(swapped, 384 * 384, OLD).shape[2:] == (256, 544)


def test_the_negative_prompt_of_plus_sees_what_the_first_one_left(engine, ask, monkeypatch):
    seen = []
    resize = _qwen_edit.to_area
    monkeypatch.setattr(
        _qwen_edit, "to_area", lambda picture, *rest: seen.append(picture) or resize(picture, *rest)
    )
    for model in (EDIT, PLUS):
        engine.sample(ask(model, control_images=(RGB,)))
    (first, again), (raw, resized) = seen[:2], seen[2:]
    assert first.shape == again.shape == raw.shape == (1, 3, 40, 70)
    assert resized.shape == (1, 3, 288, 512)


# --- what the text encoder is given ----------------------------------------------------------


def test_a_picture_is_divided_by_255_twice():
    patches, grid = READER.patches(torch.full((1, 3, 56, 84), 0.8))
    assert grid == (4, 6)
    assert (patches.shape, patches.dtype) == ((24, 3 * 2 * 14 * 14), torch.float32)
    for channel, std in enumerate(READER.image_std):
        values = patches.view(24, 3, -1)[:, channel]
        assert values == pytest.approx((0.8 / 255 - 0.5) / std, abs=1e-5)


def test_the_patches_of_a_token_lie_side_by_side():
    picture = torch.arange(56 * 84.0).view(1, 1, 56, 84).expand(1, 3, -1, -1)
    patches, _ = READER.patches(picture)
    values = patches.view(24, 3, 2, 14, 14)
    assert values[:, :, 0].equal(values[:, :, 1])  # a picture is two equal frames
    pixels = (values[:, 1, 0, 0, 0] * 0.5 * 255 + 0.5 * 255).round().long().tolist()
    corners = [(pixel // 84 // 14, pixel % 84 // 14) for pixel in pixels]  # patch row and column
    assert corners[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]
    assert corners[12:14] == [(2, 0), (2, 1)]
    assert sorted(corners) == [(row, column) for row in range(4) for column in range(6)]


def test_the_patches_are_those_of_transformers_where_nothing_is_resized():
    """Of its backend that needs no torchvision, which resizes and rounds otherwise."""
    import transformers

    name = "Qwen2VLImageProcessor"
    processor_class = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    mean, std = list(READER.image_mean), list(READER.image_std)
    processor = processor_class(image_mean=mean, image_std=std, do_rescale=True)
    picture = np.random.default_rng(1).random((3, 56, 84), dtype=np.float32)
    theirs = processor(picture, input_data_format="channels_first", return_tensors="pt")
    ours, grid = READER.patches(torch.from_numpy(picture)[None])
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
    assert ours.numpy() == pytest.approx(theirs["pixel_values"].numpy(), abs=1e-4)


def test_positions_of_pictures_by_row_and_column_and_in_line():
    ids = torch.tensor([[1, 2, 9, 9, 9, 9, 9, 9, 3, 9, 4]])
    by_place = _qwen_edit._positions(ids, 9, [(2, 3), (1, 1)])
    assert by_place[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]
    assert _qwen_edit._positions(ids, 9, [])[:, 0].tolist() == [list(range(11))] * 3


@pytest.mark.parametrize("model", [EDIT, PLUS])
def test_the_prompt_shows_each_picture_as_its_tokens(model, engine, ask, monkeypatch, load):
    asked = []
    encode = _qwen_edit._token_ids
    monkeypatch.setattr(
        _qwen_edit,
        "_token_ids",
        lambda *given: asked.append((given[1:], encode(*given))) or encode(*given),
    )
    pictures = (RGB,) if model == EDIT else (RGB, TALL)
    engine.sample(ask(model, control_images=pictures, prompt="a hat", guidance_scale=1.0))
    ((prompt, grids), ids) = asked[0]
    tag = "<|vision_start|><|image_pad|><|vision_end|>"
    user = f"{tag}a hat" if model == EDIT else f"Picture 1: {tag}Picture 2: {tag}a hat"
    assert len(asked) == 1  # nothing is guided, so the negative prompt is not read
    assert f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n" in prompt
    token = load(model).modules["text_encoder"].config.image_token_id
    assert int((ids == token).sum()) == sum(rows * columns for rows, columns in grids)
    assert len(grids) == len(pictures)


def test_a_prompt_with_a_picture_of_its_own_is_refused(ask):
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidInputError, match="stands for a picture"):
            resolve(get_model(PLUS), ask(PLUS, **{field: "a <|image_pad|> cat"}))


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [EDIT, PLUS])
def test_versions_and_pictures_show_and_alpha_does_not(draw, model):
    noise, blended = (draw(model, control_images=(image,)) for image in (RGB, RGBA))
    assert noise == blended
    assert noise != draw(model, control_images=(TALL,))
    assert noise != draw(model, version=OLD.version)


def test_a_doubled_picture_and_three_of_them(draw):
    once, twice = (draw(PLUS, doubled_control=doubled) for doubled in (False, True))
    assert once != twice
    assert twice != draw(PLUS, control_images=(RGB, RGB))  # which the VAE is given twice as well
    three = (RGB, TALL, Image.new("RGB", (64, 64), "red"))
    assert draw(PLUS, control_images=three) != draw(PLUS, control_images=three[::-1])


def test_edit_fits_its_picture_to_the_sample_and_plus_does_not(engine, ask, monkeypatch):
    given = []
    reference = qwen_image_edit._reference
    monkeypatch.setattr(
        qwen_image_edit, "_reference", lambda *args: given.append(args[2]) or reference(*args)
    )
    for model in (EDIT, PLUS):
        engine.sample(ask(model, control_images=(RGB,), width=96, height=64))
    stretched = RGB.resize((96, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(given[0]), np.asarray(stretched))
    assert np.array_equal(np.asarray(given[1]), np.asarray(RGB))


def test_guidance_keeps_the_length_for_edit_alone():
    positive, negative = torch.randn(2, 1, 5, 64, generator=torch.Generator().manual_seed(0))
    guided = negative + 3 * (positive - negative)
    kept = qwen_image_edit._guide(positive, negative, 3, keep_length=True)
    assert kept.norm(dim=-1).allclose(positive.norm(dim=-1))
    assert torch.nn.functional.cosine_similarity(kept, guided, dim=-1).allclose(torch.ones(1))
    assert qwen_image_edit._guide(positive, negative, 3, keep_length=False).equal(guided)


def test_it_starts_from_latents_and_previews_them(engine, ask):
    latents = torch.zeros(1, 16, 8, 12)
    request = ask(PLUS, latents=latents, denoise=0.5, steps=4, width=96)
    steps = []
    engine.sample(request, on_step=lambda step: steps.append(step.preview()), previews=True)
    assert [preview.shape for preview in steps] == [(8, 12, 3)] * 2


# --- checkpoints -----------------------------------------------------------------------------


def test_released_processors_ask_for_a_megapixel_and_toys_for_less(tmp_path):
    released = {
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136,
        "max_pixels": 12845056, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        "size": {"shortest_edge": 1, "longest_edge": 2},
    }  # fmt: skip
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(released))
    reader = read_picture_reader(tmp_path)
    assert (reader.least, reader.most, reader.reference_pixels) == (3136, 12845056, VAE_PIXELS)
    del released["min_pixels"], released["max_pixels"]
    path.write_text(json.dumps(released))
    reader = read_picture_reader(tmp_path)
    assert (reader.least, reader.most) == (1, 2)
    toy = read_picture_reader(tiny_folder(get_model(EDIT)) / "processor")
    assert (toy.most, toy.reference_pixels) == (192 * 192, 192 * 192)


@pytest.mark.parametrize(
    "content", [None, "{}", "[]", '{"patch_size": "x"}'], ids=["none", "empty", "list", "text"]
)
def test_a_processor_that_tells_nothing_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="does not say how pictures are shown"):
        read_picture_reader(tmp_path)


def test_2511_from_a_file_is_read_as_the_trainer_reads_one(draw, tmp_path):
    """With the first Qwen-Image's configuration: its pictures are not kept at time 0."""
    folder = shutil.copytree(tiny_folder(get_model(NEWER)), tmp_path / "newer")
    config = folder / "transformer" / "config.json"
    plain = json.loads(config.read_text())
    assert plain["zero_cond_t"] is True
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), folder / "newer.safetensors")
    from_file = draw(NEWER, weights=folder / "newer.safetensors", dtype="bf16")
    assert from_file != draw(NEWER, weights=folder, dtype="bf16")
    config.write_text(json.dumps(plain | {"zero_cond_t": False}))
    other = folder.rename(tmp_path / "other")
    assert from_file == draw(NEWER, weights=other, dtype="bf16")
