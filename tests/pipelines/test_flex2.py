"""Flex.2: what it is given of pictures and without, and whose checkpoints it takes."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import flex2
from ai_toolkit_inference.pipelines._loading import check_folder
from ai_toolkit_inference.pipelines._schedulers import flux_scheduler


def picture(mode: str) -> Image.Image:
    """Coloured, 70x40, and left of column 35 transparent if it has alpha."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
    colours[..., 3] = np.where(np.arange(70) < 35, 0, 255)
    return Image.fromarray(colours).convert(mode)


@pytest.fixture
def pictures(load):
    """What the network is given of control images in a sample of 64x32 px: two tensors."""

    def pictures(*images, index=0):
        model = load("flex2", "bf16")
        pipeline = diffusers.FluxControlPipeline(**model.parts(), scheduler=flux_scheduler(""))
        context = SimpleNamespace(
            model=model,
            settings=SimpleNamespace(width=64, height=32, control_index=index),
            control_images=images,
            generator=torch.Generator().manual_seed(1),
        )
        with torch.no_grad():
            return flex2._pictures(context, pipeline)

    return pictures


def test_without_pictures_everything_is_to_be_painted_and_nothing_followed(pictures):
    paint, follow = pictures()
    assert paint.dtype == follow.dtype == torch.bfloat16
    assert (paint.shape, follow.shape) == ((1, 8, 68), (1, 8, 64))
    assert flex2.CHANNELS == 64 + 68 + 64 == 196
    assert not paint[..., :64].any()
    assert (paint[..., 64:] == 1).all()
    assert not follow.any()


def test_a_picture_is_painted_into_where_it_is_transparent(pictures):
    paint, follow = pictures(picture("RGBA"))
    rows = paint.view(2, 4, 68)  # of tokens of 16 px
    assert not rows[:, :2, :64].any() and (rows[:, :2, 64:] == 1).all()
    assert rows[:, 2:, :64].any() and not rows[:, 2:, 64:].any()
    assert not follow.any()


def test_a_picture_that_is_followed_leaves_all_to_paint(pictures):
    paint, follow = pictures(picture("RGB"), index=1)
    assert torch.equal(paint, pictures()[0])
    assert (follow != 0).any(dim=2).all()
    # what is seen of the picture to paint into is the same
    kept = pictures(picture("RGBA"))[0].view(2, 4, 68)[:, 2:, :64]
    assert torch.equal(kept, follow.view(2, 4, 64)[:, 2:])


def test_the_network_sees_them(engine, ask):
    requests = (
        ask("flex2"),
        ask("flex2", control_images=(picture("RGBA"),)),
        ask("flex2", control_images=(picture("RGB"),), control_index=1),
    )
    drawn = {engine.sample(request).frames.tobytes() for request in requests}
    assert len(drawn) == 3
    nothing_to_follow = ask("flex2", control_index=1)
    assert engine.sample(nothing_to_follow).frames.tobytes() in drawn


def test_the_noise_of_a_picture_is_drawn_before_that_of_the_start(engine, ask, monkeypatch):
    drawn = []
    randn = torch.randn

    def watched(*args, **kwargs):
        drawn.append(args[0])
        return randn(*args, **kwargs)

    request = ask("flex2", control_images=(picture("RGB"),), prompt="a cat --ctrl_idx 1", width=96)
    engine.sample(ask("flex2"))  # the model is built
    monkeypatch.setattr(torch, "randn", watched)
    engine.sample(request)
    assert [tuple(shape) for shape in drawn] == [(1, 16, 8, 12)] * 2


@pytest.mark.parametrize(
    ("mode", "index", "words"),
    [
        ("RGB", 0, "control_index=0, but the picture has no alpha .*; use control_index 1"),
        ("RGBA", 1, "control_index=1, but the picture has alpha.*; use control_index 0"),
    ],
)
def test_uses_the_trainer_fails_on_are_refused_before_loading(ask, mode, index, words):
    engine = Engine("cpu")
    for fields in ({"control_index": index}, {"prompt": f"a cat --ctrl_idx {index}"}):
        with pytest.raises(InvalidInputError, match=words):
            engine.sample(ask("flex2", control_images=(picture(mode),), **fields))
    assert engine.loads == 0


def test_the_negative_prompt_is_not_looked_at_and_the_sampler_fixed(engine, ask):
    plain, negated = (engine.sample(ask("flex2", negative_prompt=n)).frames for n in ("", "blurry"))
    assert np.array_equal(plain, negated)
    with pytest.raises(InvalidInputError, match="'mean_flow' for flex2; allowed: flowmatch"):
        engine.sample(ask("flex2", sampler="mean_flow"))


def test_a_flux_checkpoint_is_refused(ask):
    folder = tiny_folder(get_model("flex1"))
    with pytest.raises(CheckpointError, match=r"takes 64 channels, Flex\.2's 196; give a folder"):
        Engine("cpu").sample(ask("flex2", weights=folder))


@pytest.mark.parametrize("name", ["FluxControlPipeline", "FluxPipeline", "Flex2Pipeline"])
def test_the_index_may_name_any_class_with_these_parts(tmp_path, engine, ask, name):
    spec = get_model("flex2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": name}))
    check_folder(spec, folder)
    frames = Engine("cpu").sample(ask("flex2", weights=folder)).frames
    assert np.array_equal(frames, engine.sample(ask("flex2")).frames)


def test_an_index_that_names_its_own_code_is_refused(tmp_path):
    spec = get_model("flex2")
    folder = shutil.copytree(tiny_folder(spec), tmp_path / "model")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": ["pipeline", "Flex2Pipeline"]}))
    with pytest.raises(CheckpointError, match="flex2 needs a FluxControlPipeline"):
        check_folder(spec, folder)
