"""Every sampler of every model: its steps are reported one by one, from noise and from latents."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError

CASES = [
    pytest.param(spec, sampler, id=f"{spec.id}-{sampler}")
    for spec in list_models()
    for sampler in spec.samplers
    if spec.id in ("sd15", "flux")  # the others share their code
]


@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize(("spec", "sampler"), CASES)
def test_steps_count_up_to_their_total(engine, ask, spec, sampler, denoise):
    latents = torch.zeros(1, spec.latent_channels, 8, 8)
    request = ask(spec.id, sampler=sampler, steps=4, denoise=denoise, latents=latents)
    steps = []
    result = engine.sample(request, on_step=steps.append)
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)}
    assert len(steps) >= 4 * denoise
    assert result.frames.shape == (1, 64, 64, 3)
    assert result.frames.dtype == np.uint8


class Enough(BaseException):
    pass


@pytest.mark.parametrize("most", [False, True])
@pytest.mark.parametrize(("spec", "sampler"), CASES)
def test_the_fewest_and_the_most_steps(engine, ask, spec, sampler, most):
    def stop(step):
        if step.index == 3:
            raise Enough

    if not most:
        assert engine.sample(ask(spec.id, sampler=sampler, steps=1)).frames.any()
        return
    for steps in (1000, 999, 50):  # the first that the spec does not refuse
        try:
            engine.sample(ask(spec.id, sampler=sampler, steps=steps), on_step=stop)
        except InvalidInputError:
            continue
        except Enough:
            return
    raise AssertionError("all were refused")


@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux"])
def test_previews_show_the_latents_and_change_nothing(engine, ask, model):
    previews = []
    plain = engine.sample(ask(model, width=96, height=64))
    seen = engine.sample(
        ask(model, width=96, height=64),
        on_step=lambda step: previews.append(step.preview()),
        previews=True,
    )
    assert np.array_equal(plain.frames, seen.frames)
    assert [(preview.shape, preview.dtype) for preview in previews] == [((8, 12, 3), np.uint8)] * 2
    assert all(preview.std() > 0 for preview in previews)


def test_the_libraries_say_nothing(engine, ask, capfd):
    engine.unload()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.sample(ask(denoise=0.5, latents=torch.zeros(1, 4, 8, 8)))
        for sampler in get_model("sd15").samplers:
            engine.sample(ask(sampler=sampler, steps=3))
        engine.sample(ask("sdxl", dtype="fp16"))
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
