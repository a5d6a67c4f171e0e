"""Requests refuse what cannot be meant, before anything is loaded."""

from __future__ import annotations

import pytest

from ai_toolkit_inference import SampleRequest
from ai_toolkit_inference.core import errors
from ai_toolkit_inference.core.errors import AitkError, InvalidInputError
from ai_toolkit_inference.core.requests import QUANTIZE, AdapterRef, Recipe, parse_switches


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("dtype", "bf16, fp16, fp32"),
        ("quantize", ", ".join(QUANTIZE)),
        ("trainer_version", "auto, 0.7.19, 0.12.26"),
        ("offload", "auto, none, model, group, sequential"),
        ("mode", "as_trainer, merged, live"),
    ],
)
@pytest.mark.parametrize("value", ["", "BF16", "fp8", None, 16])
def test_a_recipe_names_what_is_allowed(name, allowed, value):
    with pytest.raises(InvalidInputError) as refusal:
        Recipe("sd15", **{name: value})
    assert str(refusal.value) == f"unknown {name} {value!r}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("width", (0, 1, 16384), (-1, 16385, 10**30)),
        ("height", (0, 1, 16384), (-1, 16385, 10**30)),
        ("steps", (0, 1, 10_000), (-1, 10_001)),
        ("num_frames", (0, 10_000), (-1, 10_001)),
        ("fps", (0, 1000), (-1, 1001)),
        ("seed", (0, 2**64 - 1), (-1, 2**64)),
    ],
)
def test_whole_numbers_have_a_range(name, good, bad):
    for value in good:
        assert getattr(SampleRequest(Recipe("sd15"), **{name: value}), name) == value
    for value in (*bad, 8.0, "8", None, True):
        with pytest.raises(InvalidInputError, match=f"^{name}={value!r}; "):
            SampleRequest(Recipe("sd15"), **{name: value})


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale", "denoise"])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), "1", None, True, 10**400]
)
def test_numbers_have_to_be_finite(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name}=.*finite number"):
        SampleRequest(Recipe("sd15"), **{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, 10**400])
def test_multipliers_have_to_be_finite(value):
    with pytest.raises(InvalidInputError, match=r"^multiplier=.*finite number"):
        AdapterRef("a.safetensors", value)


@pytest.mark.parametrize("value", [-0.001, -2, -1.5])
def test_guidance_is_never_negative_but_for_the_default(value):
    with pytest.raises(InvalidInputError, match="guidance_scale"):
        SampleRequest(Recipe("sd15"), guidance_scale=value)


@pytest.mark.parametrize("value", [0, -0.5, 1.0001])
def test_denoise_is_a_share(value):
    with pytest.raises(InvalidInputError, match="denoise"):
        SampleRequest(Recipe("sd15"), denoise=value, latents=object())


def test_part_of_the_steps_needs_latents():
    with pytest.raises(InvalidInputError, match="needs latents"):
        SampleRequest(Recipe("sd15"), denoise=0.5)


def test_another_adapter_leaves_the_recipe_as_it_was():
    plain = Recipe("sd15")
    one = plain.with_adapter(AdapterRef("a", 0.5))
    two = one.with_adapter(AdapterRef("b"), mode="live")
    assert plain.adapters == ()
    assert [ref.path for ref in two.adapters] == ["a", "b"]
    assert (one.mode, two.mode) == ("as_trainer", "live")
    with pytest.raises(InvalidInputError, match="unknown mode"):
        plain.with_adapter(AdapterRef("a"), mode="fast")


def test_equal_requests_are_equal_keys():
    requests = {SampleRequest(Recipe("sd15"), "a cat", seed=seed % 2) for seed in range(4)}
    assert len(requests) == 2


def test_error_codes_are_distinct():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AitkError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds) > 5
    assert all(kind.exit_code == 2 for kind in kinds if issubclass(kind, InvalidInputError))
    assert all(400 <= kind.http_status < 600 for kind in kinds)


def test_switches_as_text() -> None:
    assert parse_switches("") == parse_switches(" , ") == ()
    found = parse_switches("kv_cache=on, match_target_res=off")
    assert found == (("kv_cache", True), ("match_target_res", False))
    for text in ("kv_cache", "kv_cache=yes", "=on"):
        with pytest.raises(InvalidInputError, match="write NAME=on or NAME=off"):
            parse_switches(f"a=on,{text}")
