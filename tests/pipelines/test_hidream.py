"""HiDream: the area of every sample, the scheduler, its four encoders."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._loading import check_folder, part_path
from ai_toolkit_inference.pipelines._skeleton import skeleton
from ai_toolkit_inference.pipelines._unipc import FlowUniPC, unipc_sigmas, unipc_timesteps
from ai_toolkit_inference.pipelines.hidream import LLAMA, check_hidream, sampled_size


@pytest.mark.parametrize(
    ("asked", "sampled"),
    [
        ((1024, 1024), (1024, 1024)),
        ((512, 512), (1024, 1024)),
        ((2048, 2048), (1024, 1024)),
        ((1280, 720), (1360, 768)),
        ((832, 1216), (832, 1232)),
        ((64, 4096), (128, 8192)),
    ],
)
def test_every_sample_has_the_same_area(asked, sampled):
    assert sampled_size(*asked) == sampled


@pytest.mark.parametrize(("asked", "drawn"), [((64, 64), (128, 128)), ((104, 64), (160, 96))])
def test_a_toy_is_sampled_at_the_area_it_was_made_for(engine, ask, asked, drawn):
    result = engine.sample(ask("hidream", width=asked[0], height=asked[1], steps=1))
    assert result.frames.shape == (1, drawn[1], drawn[0], 3)
    assert (result.info["width"], result.info["height"]) == drawn


def test_noise_levels_of_the_released_network():
    shift = math.exp(1.15)
    sigmas = unipc_sigmas(25, shift)
    assert sigmas[:2] == pytest.approx([0.999894, 0.986871], abs=1e-6)
    assert unipc_timesteps(sigmas)[:3].tolist() == [999, 986, 973]
    assert sigmas[-1] == pytest.approx(0.116253, abs=1e-6)


def test_the_solver_follows_a_straight_line_exactly():
    # a network that always knows the picture: every step lies on the line from noise to it
    picture, noise = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64).unbind()
    scheduler = FlowUniPC(shift=3.0)
    scheduler.set_timesteps(6)
    first = scheduler.sigmas[0]
    latents = first * noise + (1 - first) * picture
    for index, timestep in enumerate(scheduler.timesteps):
        (latents,) = scheduler.step(noise - picture, timestep, latents)
        sigma = scheduler.sigmas[index + 1]
        assert torch.allclose(latents, sigma * noise + (1 - sigma) * picture, atol=1e-5)


def test_steps_at_the_start_are_left_out():
    whole, part = FlowUniPC(3.0), FlowUniPC(3.0, skipped=4)
    whole.set_timesteps(6)
    part.set_timesteps(6)
    assert part.timesteps.tolist() == whole.timesteps[4:].tolist()
    assert part.sigmas.tolist() == whole.sigmas[4:].tolist()


def test_as_many_steps_as_the_trainer_can():
    check_hidream(SimpleNamespace(steps=1))
    check_hidream(SimpleNamespace(steps=300))
    with pytest.raises(InvalidInputError, match="steps=400"):
        check_hidream(SimpleNamespace(steps=400))


def test_latents_have_to_be_of_the_size_that_is_sampled(engine, ask):
    latents = torch.zeros(1, 16, 8, 8)
    with pytest.raises(InvalidInputError, match=r"64x64 px, but hidream .* 128x128"):
        engine.sample(ask("hidream", latents=latents, width=0, height=0, denoise=0.5))
    start = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = [
        engine.sample(
            ask("hidream", latents=start, width=0, height=0, denoise=denoise, steps=4)
        ).frames
        for denoise in (0.25, 0.5, 1.0)
    ]
    assert drawn[0].shape == (1, 128, 128, 3)
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_guidance_at_one_leaves_the_negative_prompt_out(engine, ask):
    def draw(guidance, negative):
        asked = ask("hidream", guidance_scale=guidance, negative_prompt=negative, steps=1)
        return engine.sample(asked).frames

    assert np.array_equal(draw(1.0, ""), draw(1.0, "blurry"))
    assert not np.array_equal(draw(1.5, ""), draw(1.5, "blurry"))


def test_llama_may_come_from_its_own_repository(tmp_path):
    spec = get_model("hidream")
    folder = tmp_path / "released"
    shutil.copytree(tiny_folder(spec), folder)
    for part in ("text_encoder_4", "tokenizer_4"):
        assert part_path(spec, folder, part) == str(folder / part)
        shutil.rmtree(folder / part)
        assert part_path(spec, folder, part) == LLAMA
    check_folder(spec, folder)
    assert "text_encoder_4" not in skeleton(spec, folder)
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(CheckpointError, match="text_encoder_3"):
        check_folder(spec, folder)


def test_llama_attends_eagerly_and_pads_with_its_last_token(load):
    model = load("hidream")
    assert model.modules["text_encoder_4"].config._attn_implementation == "eager"
    tokenizer = model.tokenizers["tokenizer_4"]
    ids = tokenizer("a cat", padding="max_length", max_length=8).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<|begin_of_text|>"
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "<|eot_id|>"
