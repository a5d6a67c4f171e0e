"""OmniGen2: its sizes, the time grid, the prompt in its template twice, the picture it sees."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import InvalidInputError, MissingDependencyError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import _vendor
from ai_toolkit_inference.pipelines._loading import check_folder
from ai_toolkit_inference.pipelines.omnigen2 import (
    SYSTEM,
    in_template,
    network_class,
    reference_size,
    sampled_size,
    time_grid,
)


@pytest.mark.parametrize(
    ("asked", "sampled"),
    [
        ((1024, 1024), (1024, 1024)),
        ((512, 512), (512, 512)),
        ((104, 72), (96, 64)),
        ((2048, 1024), (1440, 720)),
        ((1536, 1536), (1024, 1024)),
    ],
)
def test_a_megapixel_at_most(asked, sampled):
    assert sampled_size(*asked) == sampled


def test_the_picture_has_the_size_asked_for(engine, ask):
    assert engine.sample(ask("omnigen2", width=104, height=72)).frames.shape == (1, 72, 104, 3)


@pytest.mark.parametrize(
    ("sample", "read"),
    [
        ((1024, 1024), (1024, 1024)),
        ((104, 72), (96, 64)),
        ((1536, 1536), (1024, 1024)),
        ((2048, 1024), (1024, 512)),
        ((304, 1216), (256, 1024)),
    ],
)
def test_a_control_image_has_no_side_above_1024(sample, read):
    assert reference_size(*sample) == read


def test_the_sizes_of_control_images_are_the_trainers():
    path = "extensions_built_in.diffusion_models.omnigen2.src.pipelines.image_processor"
    processor = _vendor.trainer_module(path).OmniGen2ImageProcessor(vae_scale_factor=16)
    limits = {"max_pixels": 1024 * 1024, "max_side_length": 1024}
    sides = (64, 72, 200, 760, 1000, 1024, 1032, 1448, 2000)
    for width in sides:
        for height in sides:
            image = Image.new("1", (width, height))
            theirs = processor.get_new_height_width(image, **limits)
            assert reference_size(width, height) == theirs[::-1], (width, height)


@pytest.fixture
def network_inputs(engine, ask):
    """(latents, references) of the calls of the network in a request."""

    def network_inputs(**fields):
        request = ask("omnigen2", steps=1, **fields)
        calls = []
        network = engine.model(request.recipe).modules["transformer"]
        hook = network.register_forward_pre_hook(
            lambda _module, args, given: calls.append((args[0], given["ref_image_hidden_states"])),
            with_kwargs=True,
        )
        with hook:
            engine.sample(request)
        return calls

    return network_inputs


def test_both_prompts_see_the_control_image(network_inputs):
    picture = Image.linear_gradient("L").convert("RGB")
    calls = network_inputs(control_images=(picture,), width=104, guidance_scale=4.0)
    assert len(calls) == 2
    for _, references in calls:
        ((reference,),) = references
        assert reference.shape == (16, 8, 12)
        assert reference.equal(calls[0][1][0][0]) and reference.std() > 0.1
    assert [references for _, references in network_inputs(guidance_scale=4.0)] == [None, None]


def test_the_noise_is_drawn_after_the_control_image(network_inputs):
    picture = Image.linear_gradient("L").convert("RGB")
    (with_picture, _), *_ = network_inputs(control_images=(picture,), seed=5)
    (without, _), *_ = network_inputs(seed=5)
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(1, 16, 8, 8, generator=generator) for _ in range(2))
    assert without.equal(first) and with_picture.equal(second)


def test_shapes_in_which_a_control_image_would_have_no_height(engine, ask):
    picture = Image.new("RGB", (64, 64))
    wide = {"width": 4160, "height": 64, "steps": 1}
    with pytest.raises(InvalidInputError, match="4160x64 px; a control image is read"):
        engine.sample(ask("omnigen2", control_images=(picture,), **wide))


def test_the_time_grid():
    times = time_grid(4, 128 * 128)
    assert times.dtype == torch.float32
    assert times.tolist() == pytest.approx([0.0, 0.094340, 0.238095, 0.483871, 1.0], abs=1e-6)
    assert time_grid(4, 40 * 40).tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_the_template_twice(load):
    text = in_template(load("omnigen2").tokenizers["processor"], "a cat")
    opening = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    assert text == f"{opening}{opening}a cat<|im_end|>\n<|im_end|>\n"


def test_guidance_at_one_leaves_the_negative_prompt_out(engine, ask):
    def draw(guidance, negative):
        asked = ask("omnigen2", guidance_scale=guidance, negative_prompt=negative, steps=1)
        return engine.sample(asked).frames

    assert np.array_equal(draw(1.0, ""), draw(1.0, "blurry"))
    assert not np.array_equal(draw(1.5, ""), draw(1.5, "blurry"))


def test_latents_have_to_be_of_the_size_that_is_sampled(engine, ask):
    latents = torch.zeros(1, 16, 9, 8)
    with pytest.raises(InvalidInputError, match=r"64x72 px, but omnigen2 .* 64x64"):
        engine.sample(ask("omnigen2", latents=latents, width=0, height=0, denoise=0.5))
    start = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [
        engine.sample(
            ask("omnigen2", latents=start, width=0, height=0, denoise=denoise, steps=4)
        ).frames
        for denoise in (0.25, 0.5, 1.0)
    ]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_the_released_index_names_code_that_is_not_run(tmp_path):
    spec = get_model("omnigen2")
    shutil.copytree(tiny_folder(spec), tmp_path / "released")
    index = tmp_path / "released" / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"scheduler": ["scheduling_of_its_own", "Scheduler"]}))
    check_folder(spec, tmp_path / "released")


def test_without_the_trainer_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("AI_TOOLKIT_PATH", raising=False)
    monkeypatch.setattr(_vendor, "VENDOR", tmp_path / "none")
    try:
        with pytest.raises(MissingDependencyError, match=r"run `.*install\.py`"):
            network_class()
    finally:
        monkeypatch.undo()


def test_the_network_is_the_trainers(load):
    network = load("omnigen2").modules["transformer"]
    assert type(network) is network_class()
    assert type(network).__module__.startswith(f"{_vendor.PACKAGE}.extensions_built_in.")
