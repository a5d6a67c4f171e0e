"""What the node that renders asks the engine for, and what it refuses before."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from ai_toolkit_inference import Engine, SampleRequest, SampleResult
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.nodes import _comfy, _memory
from ai_toolkit_inference.nodes.sample import AIToolkitSample

INPUTS = ("a cat", "", 64, 64, 1, -1.0, 42)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SampleRequest]:
    """The requests that the engine is given; it plans them, and draws nothing."""
    requests: list[SampleRequest] = []

    def note(request: SampleRequest, **_: object) -> SampleResult:
        requests.append(request)
        return SampleResult(np.zeros((1, 64, 64, 3), np.uint8), 0, {"seconds": 1.0})

    engine = Engine("cpu")
    monkeypatch.setattr(engine, "sample", note)
    monkeypatch.setattr(_comfy, "engine", lambda: engine)
    for name in ("step_reporter", "status_reporter"):
        monkeypatch.setattr(_comfy, name, lambda _: lambda *_: None)
    monkeypatch.setattr(_memory, "room_for", lambda *_: nullcontext())
    return requests


def test_switches_of_the_model(asked: list[SampleRequest]) -> None:
    recipe = Recipe("wan21_1b", weights="tiny")
    AIToolkitSample().sample(recipe, *INPUTS)
    AIToolkitSample().sample(recipe, *INPUTS, switches=" vae_tiling=on, ")
    assert [request.switches for request in asked] == [(), (("vae_tiling", True),)]


def test_switches_of_another_model(asked: list[SampleRequest]) -> None:
    recipe = Recipe("sd15", weights="tiny")
    with pytest.raises(InvalidInputError, match=r"unknown switch of sd15 'kv_cache'; .* none"):
        AIToolkitSample().sample(recipe, *INPUTS, switches="kv_cache=on")
    assert asked == []


@pytest.mark.parametrize("switches", ["kv_cache", "kv_cache=1", "=on", "a=on b=off"])
def test_what_is_no_switch_is_refused_before_anything_runs(switches: str) -> None:
    message = AIToolkitSample.VALIDATE_INPUTS(prompt="a", switches=switches)
    assert message == f"switch {switches!r}; write NAME=on or NAME=off"


def test_text_of_another_node_is_not_known_before_it_runs() -> None:
    # ComfyUI gives None for what is linked
    assert AIToolkitSample.VALIDATE_INPUTS(prompt=None, switches=None) is True
    assert AIToolkitSample.VALIDATE_INPUTS(prompt="a", switches="kv_cache=on,x=off") is True
    assert "--w" in str(AIToolkitSample.VALIDATE_INPUTS(prompt="a --w wide"))
