"""What the LoRA node makes of files that were something else in the job than its result."""

from __future__ import annotations

import pytest

from ai_toolkit_inference import Engine
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.requests import AdapterRef, Recipe
from ai_toolkit_inference.nodes import _comfy
from ai_toolkit_inference.nodes.lora import ROLES, ApplyAIToolkitLoRA

FLUX = Recipe("flux", weights="tiny")


@pytest.fixture
def apply(monkeypatch):
    monkeypatch.setattr(_comfy, "engine", lambda: Engine("cpu"))
    monkeypatch.setattr(_comfy, "status_reporter", lambda _: lambda _: None)
    return lambda *inputs, **more: ApplyAIToolkitLoRA().apply(*inputs, **more)["result"]


@pytest.mark.parametrize("role", ["assistant", "inference", "base"])
def test_a_role_puts_the_file_into_its_field(apply, role):
    recipe, report = apply(FLUX, "tiny", 1.0, role=role)
    assert getattr(recipe, ROLES[role]) == "tiny"
    assert recipe.adapters == ()
    assert "trained on flux.1" in report
    on_top, _ = apply(recipe, "tiny", 0.5)
    assert on_top.adapters == (AdapterRef("tiny", 0.5),)
    assert getattr(on_top, ROLES[role]) == "tiny"


def test_a_place_is_taken_once_and_where_the_trainer_has_it(apply):
    recipe, _ = apply(FLUX, "tiny", 1.0, role="assistant")
    with pytest.raises(InvalidInputError, match=r"tiny is it already"):
        apply(recipe, "tiny", 1.0, role="assistant")
    with pytest.raises(InvalidInputError, match=r"takes one of them at a time"):
        apply(recipe, "tiny", 1.0, role="base")
    with pytest.raises(InvalidInputError, match=r"sd15 takes no assistant_lora_path"):
        apply(Recipe("sd15", weights="tiny"), "tiny", 1.0, role="assistant")


def test_only_the_trained_one_has_a_multiplier():
    check = ApplyAIToolkitLoRA.VALIDATE_INPUTS
    assert check(0.5) is True
    assert check(1.0, role="base") is True
    assert "with the role base it is 1" in str(check(0.5, role="base"))
    assert "must be one of trained, assistant" in str(check(1.0, role="other"))
