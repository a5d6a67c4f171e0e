"""Control images: read as the trainer reads them, refused before anything is loaded."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference import Engine, get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.specs import ControlImages
from ai_toolkit_inference.engine import control_images
from ai_toolkit_inference.engine.control_images import check_control_images, read_control_image

PIXELS = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)
PICTURE = Image.fromarray(PIXELS[..., :3].copy())
EDITS = replace(get_model("sd15"), id="edits", control_images=ControlImages(1, 3))
EITHER = replace(EDITS, control_images=ControlImages(0, 1, index=True, alpha=True, doubled=True))


def test_alpha_is_dropped_unless_the_name_says_what_it_is_for(tmp_path):
    for name, channels in (("a.png", 3), ("a.inpaint.png", 4)):
        Image.fromarray(PIXELS).save(tmp_path / name)
        assert np.array_equal(read_control_image(tmp_path / name), PIXELS[..., :channels])


def test_orientation_is_not_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    PICTURE.save(tmp_path / "a.png", exif=exif)
    assert read_control_image(tmp_path / "a.png").size == (7, 5)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    for name in ("a.gif", "a.webp", "a.png"):
        frames = [Image.new("RGB", (7, 5), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_control_image(tmp_path / name).getpixel((3, 2))[2] < 9


def test_16_bits_are_cut_at_255(tmp_path):
    levels = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    pixels = np.asarray(read_control_image(tmp_path / "a.png"))
    assert pixels.tolist() == [[[level] * 3 for level in (0, 255, 255, 255)]]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    PICTURE.convert("L").convert(mode).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    (file,) = tmp_path.iterdir()
    assert read_control_image(file).mode == "RGB"


def bad_files():
    png = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(png, "PNG")
    yield "cut.png", png.getvalue()[:-900], "could not be read"
    yield "text.png", b"hello", "no picture that can be read"
    yield "empty.png", b"", "no picture that can be read"
    yield "flat.inpaint.png", png.getvalue(), "has no alpha channel"


@pytest.mark.parametrize(("name", "data", "words"), list(bad_files()), ids=lambda x: str(x)[:20])
def test_a_bad_file_is_refused(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInputError, match=words) as refusal:
        read_control_image(tmp_path / name)
    assert str(tmp_path) not in str(refusal.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no control image .*gone\.png"):
        read_control_image(tmp_path / "gone.png")
    with pytest.raises(InvalidInputError, match=f"{tmp_path.name} is a folder"):
        read_control_image(tmp_path)


@pytest.mark.parametrize("limit", [34, 10])  # beyond twice its own limit Pillow refuses by itself
def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(control_images, "MAX_PIXELS", 34)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(
        InvalidInputError, match=r"a\.png is (7x5 px|too large); at most .* million pixels"
    ):
        read_control_image(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match="control image 1 is 7x5 px"):
        check_control_images([PICTURE])


@pytest.mark.parametrize("thing", ["a.png", PIXELS, None, PICTURE.convert("L")])
def test_only_rgb_and_rgba_pictures_are_taken(thing):
    with pytest.raises(InvalidInputError, match=r"control image 2 is .*PIL image, RGB or RGBA"):
        check_control_images([PICTURE, thing])


def test_the_number_of_pictures_is_the_models(ask):
    for count, words in ((0, "needs 1 control image, got 0"), (4, "at most 3 .*got 4")):
        with pytest.raises(InvalidInputError, match=words):
            resolve(EDITS, ask(control_images=(PICTURE,) * count))
    resolve(EDITS, ask(control_images=(PICTURE,) * 3))
    resolve(EITHER, ask())


def test_a_prompt_cannot_name_a_file(ask):
    request = ask(control_images=(PICTURE,), prompt="a cat --ctrl_img /etc/passwd")
    with pytest.raises(InvalidInputError, match="--ctrl_img in the prompt"):
        resolve(EDITS, request)


def test_what_a_picture_is_for_is_the_models_to_ask(ask):
    for fields, words in (
        ({"control_index": 1}, "control_index=1"),
        ({"doubled_control": True}, "doubled_control"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            resolve(EDITS, ask(control_images=(PICTURE,), **fields))
        resolve(EITHER, ask(**fields))
    assert resolve(EITHER, ask(prompt="a cat --ctrl_idx 1")).control_index == 1
    with pytest.raises(InvalidInputError, match="control_index"):
        ask(control_index=2)


SMALL, LONG = Image.new("RGB", (63, 64)), Image.new("RGB", (900, 3))


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        ("flux2", (SMALL,), "control image 1 is 63x64 px; flux2 takes sides of 64 px or more"),
        ("flux2_klein_9b", (LONG.resize((640, 64)),), "at most 8 times the shorter"),
        ("qwen_image_edit", (LONG,), "control image 1 is 900x3 px; .* at most 163 times"),
        ("qwen_image_edit_plus", (SMALL, LONG), "control image 2 is 900x3 px; .* 279 times"),
        ("krea2_o_edit", (LONG.resize((9000, 3)),), "9000x3 px; .* at most 200 times"),
    ],
)
def test_what_the_trainer_fails_on_is_refused_before_loading(ask, model, images, words):
    unloaded = Engine("cpu")
    with pytest.raises(InvalidInputError, match=words):
        unloaded.sample(ask(model, control_images=images))
    assert unloaded.loads == 0


@pytest.mark.parametrize("model", [spec.id for spec in list_models() if spec.task == "edit"])
def test_edit_models_take_a_picture_of_one_pixel(engine, ask, model):
    dot = Image.new("RGB", (1, 1), "red")
    assert engine.sample(ask(model, control_images=(dot,))).frames.std() > 1
