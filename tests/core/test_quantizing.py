"""What a recipe, or a job, comes to in quantized parts."""

from __future__ import annotations

from typing import Any

import pytest

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.qtypes import NAMES, QTYPES, split_quantize
from ai_toolkit_inference.core.quantizing import (
    Quantization,
    qtypes_of_job,
    resolve_quantization,
)
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.core.versions import LATEST, PROFILES


def resolved(model: str, version: int = -1, **fields: Any) -> Quantization:
    return resolve_quantization(get_model(model), Recipe(model, **fields), PROFILES[version])


@pytest.mark.parametrize("quantize", ["as_trained", "none"])
def test_without_a_qtype_nothing_is_quantized(quantize: str) -> None:
    assert resolved("flux", quantize=quantize) == Quantization()


def test_a_qtype_is_for_the_text_encoder_too() -> None:
    both = resolved("qwen_image", quantize="qint8")
    assert (both.denoiser, both.encoders, both.merges) == ("qint8", "qint8", False)
    one = resolved("qwen_image", quantize="qint8", quantize_te="none")
    assert (one.denoiser, one.encoders) == ("qint8", "")
    other = resolved("qwen_image", quantize="qint8", quantize_te="qfloat8")
    assert (other.denoiser, other.encoders) == ("qint8", "qfloat8")


def test_a_quantized_text_encoder_alone_leaves_adapters_merged() -> None:
    alone = resolved("lumina2", quantize_te="qfloat8")
    assert (alone.denoiser, alone.encoders, alone.merges) == ("", "qfloat8", True)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_stable_diffusion_only_stops_merging(model: str) -> None:
    assert resolved(model, quantize="qfloat8") == Quantization(merges=False)
    assert resolved(model, layer_offloading=True) == Quantization(merges=False)


def test_offloaded_layers_have_another_default() -> None:
    offloaded = resolved("zimage", quantize="qfloat8", layer_offloading=True)
    assert (offloaded.denoiser, offloaded.encoders) == ("float8", "float8")
    assert offloaded.restores == ("transformer",)
    assert resolved("zimage", quantize="qint8", layer_offloading=True).denoiser == "qint8"
    assert resolved("flux", quantize="qfloat8", layer_offloading=True).restores == ()


def test_an_assistant_has_another_default() -> None:
    beside = resolved("zimage_turbo", quantize="qfloat8", assistant_lora_path="a.safetensors")
    assert (beside.denoiser, beside.encoders) == ("float8", "qfloat8")
    flux = resolved("flux_schnell", quantize="qfloat8", assistant_lora_path="a.safetensors")
    assert flux.denoiser == "qfloat8"


@pytest.mark.parametrize("model", ["zimage", "wan22_5b", "wan22_14b_t2v"])
def test_what_stays_in_full_precision_depends_on_the_version(model: str) -> None:
    assert resolved(model, 0, quantize="qfloat8").keeps == ()
    assert "condition_embedder*" in resolved("wan22_5b", quantize="qfloat8").keeps
    assert resolved(model, quantize="qfloat8").keeps


def test_an_adapter_that_recovers_accuracy() -> None:
    qwen = resolved("qwen_image", quantize="uint3|a/b/c.safetensors")
    assert (qwen.denoiser, qwen.recovery) == ("uint3", "a/b/c.safetensors")
    assert qwen.encoders == "qfloat8"  # whose field is another
    assert resolved("wan21_14b", quantize="uint4|a/b/c.safetensors").encoders == "uint4"
    with pytest.raises(InvalidInputError, match="the trainer ignores"):
        resolved("flux", quantize="uint3|a/b/c.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q8", "unknown quantize 'q8'; allowed: as_trained, none, qfloat8, "),
        ("none|a.safetensors", "unknown quantize"),
        ("uint3|", "names no file"),
        ("qfloat8|a.safetensors", "the trainer fails at an accuracy recovery adapter with qfloat8"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Recipe("qwen_image", quantize=text)


@pytest.mark.parametrize("text", ["as_trained", "uint3|a.safetensors", "q8"])
def test_text_encoders_take_a_qtype_or_none(text: str) -> None:
    with pytest.raises(InvalidInputError, match="quantize"):
        Recipe("qwen_image", quantize_te=text)


@pytest.mark.parametrize("qtype", [qtype.name for qtype in QTYPES if qtype.since])
def test_qtypes_that_a_version_lacks_are_refused(qtype: str) -> None:
    with pytest.raises(InvalidInputError, match=f"0.7.19 has no qtype {qtype}; it has qfloat8, "):
        resolved("flux", 0, quantize=qtype)
    with pytest.raises(InvalidInputError, match=f"has no qtype {qtype}"):
        resolved("flux", 0, quantize_te=qtype)
    assert resolved("flux", quantize=qtype).denoiser == qtype


@pytest.mark.parametrize(
    ("model", "section", "expected"),
    [
        ("flux", {}, ("none", "none")),
        ("flux", {"quantize": True}, ("qfloat8", "qfloat8")),
        ("flux", {"quantize": True, "qtype": "qint8", "qtype_te": "qint4"}, ("qint8", "qint8")),
        ("qwen_image", {"quantize": True, "qtype": "qint8"}, ("qint8", "qfloat8")),
        ("qwen_image", {"quantize": True, "quantize_te": False}, ("qfloat8", "none")),
        ("qwen_image", {"quantize_te": True, "qtype_te": "qint8"}, ("none", "qint8")),
        ("qwen_image", {"quantize": True, "qtype": "uint3|a"}, ("uint3|a", "qfloat8")),
        ("wan22_14b_t2v", {"quantize": True, "qtype": "uint4|a"}, ("uint4|a", "uint4")),
        ("flux", {"quantize": True, "qtype": "uint3|a"}, ("uint3", "uint3")),
        (
            "qwen_image",
            {"quantize": True, "qtype": "float8", "accuracy_recovery_adapter": "a"},
            ("float8|a", "qfloat8"),
        ),
    ],
)
def test_a_job_says_it_in_its_own_words(
    model: str, section: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert qtypes_of_job(section, get_model(model)) == expected


def test_every_model_names_parts_that_it_has() -> None:
    for spec in list_models():
        rules = spec.quantizing
        named = {*rules.encoders, *rules.offloads, *rules.offloads_first}
        assert named <= set(spec.components), spec.id
        assert rules.encoders_by in ("qtype", "qtype_te")
        assert not rules.keeps_since or LATEST.has(rules.keeps_since)
        assert rules.denoiser == (spec.id not in ("sd15", "sdxl"))
        assert bool(rules.encoders) == rules.denoiser


def test_the_names_are_the_trainers() -> None:
    assert len(set(NAMES)) == len(NAMES) == 33
    assert all(split_quantize(name) == (name, "") for name in NAMES)
