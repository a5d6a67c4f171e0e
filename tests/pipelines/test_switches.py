"""Every row of the switch table (core.versions.CHANGES): what it changes, seen in a sample.

A sample is drawn by the newest trainer's profile and by the same profile without the one row. That
both are as the trainer draws is for the goldens to say: see the last tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from ai_toolkit_inference import list_models
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.qtypes import QTYPES
from ai_toolkit_inference.core.versions import CHANGES, LATEST, PROFILES, Change, Profile
from ai_toolkit_inference.engine import plan as planning

MANIFEST = json.loads(
    (Path(__file__).parents[1] / "goldens" / "manifest.json").read_text(encoding="utf-8")
)
WIDE_PICTURE = Image.linear_gradient("L").resize((192, 128)).convert("RGB")
CURLY = "a woman\u2019s blue hat, \ufb01lm"
# What to ask for so that a row matters: a model and fields of the request.
CASES: dict[str, dict[str, Any]] = {
    "clip_prompt_without_ftfy": {"model": "sd15", "prompt": CURLY},
    "trigger_in_cached_text": {
        "model": "sd15", "prompt": "a [trigger] cat", "trigger_word": "sks", "cached_text": True,
    },
    "lokr_by_factors": {"model": "flux", "network": "flux-lokr", "dtype": "bf16"},
    "vae_norm_in_fp32": {"model": "qwen_image", "dtype": "bf16"},
    "qwen_edit_upright": {"model": "qwen_image_edit", "control_images": (WIDE_PICTURE,)},
    "qwen_vl_positions_in_line": {"model": "qwen_image_edit"},
    "qwen_tiled_vae": {"model": "qwen_image", "width": 288},
    "z_image_guidance_above_zero": {"model": "zimage", "guidance_scale": 1.0},
    "z_image_mask_where_needed": {"model": "zimage", "prompt": "cat"},
    "z_image_sides_of_16": {"model": "zimage", "width": 80},
    "z_image_guidance_from_one": {"model": "zimage", "guidance_scale": 3.0},
    "z_image_steps_all_count": {"model": "zimage"},
    "krea2_references_apart": {"model": "krea2_o_edit", "control_images": (WIDE_PICTURE,)},
    "krea2_guidance_from_one": {"model": "krea2", "guidance_scale": 3.0},
    "wan_euler_sampler": {"model": "wan21_1b"},
    "wan_image_by_torchvision": {"model": "wan21_i2v_14b", "control_images": (WIDE_PICTURE,)},
    "umt5_prompt_not_normalized": {"model": "wan21_1b", "prompt": "cat\u00b2"},
    "wan_vae_norm_in_fp32": {"model": "wan21_1b", "dtype": "bf16"},
    "wan_tiled_vae": {"model": "wan22_5b", "width": 288},
    "ltx2_prompt_unpadded": {"model": "ltx2", "dtype": "bf16"},
    "ltx2_clean_guidance": {"model": "ltx2", "steps": 3},
    "ltx2_decoded_by_frames": {"model": "ltx2", "width": 288},
    "ltx2_tokens_reversed": {"model": "ltx2"},
    "wan22_ends_in_full_precision": {"model": "wan22_5b", "quantize": "qint4"},
    "z_image_ends_in_full_precision": {"model": "zimage", "quantize": "qint4"},
    "krea2_ends_in_full_precision": {"model": "krea2", "quantize": "qint4"},
}  # fmt: skip
# The pictures are the same on a CPU, so that what attention is given is looked at.
ONLY_ELSEWHERE = {"z_image_mask_where_needed"}
# Rows that brought a model: nothing is drawn without them.
BROUGHT = {"flux2_klein", "krea2", "krea2_edit", "ltx2.3"}
# The same for ways to hold weights in fewer bits.
BROUGHT_QTYPES = {qtype.since for qtype in QTYPES if qtype.since}
# Their model came after the oldest pinned version, so no golden shows how it was before.
OF_NEWER_MODELS = {
    "krea2_references_apart", "krea2_guidance_from_one", "krea2_ends_in_full_precision",
}  # fmt: skip


@dataclass(frozen=True)
class Without(Profile):
    """A profile that lacks one row."""

    missing: str = ""

    def has(self, change: str) -> bool:
        return super().has(change) and change != self.missing


@pytest.fixture
def at(monkeypatch) -> Callable[[Profile], None]:
    """Has samples drawn as by this profile, whatever their adapters say."""
    return lambda profile: monkeypatch.setattr(
        planning, "profile_for_adapters", lambda *_, **__: profile
    )


@pytest.fixture
def draw(engine, ask, trained_lora, at) -> Callable[[str, Profile], np.ndarray]:
    """The frames of a row's case in a profile."""

    def draw(name: str, profile: Profile) -> np.ndarray:
        at(profile)
        fields = dict(CASES[name])
        if network := fields.pop("network", ""):
            fields |= {"adapters": ((trained_lora(network), 1.0),), "mode": "live"}
        return engine.sample(ask(**fields)).frames

    return draw


def profiles_of(change: Change) -> tuple[Profile, Profile]:
    """The version that brought a row, without it and with it."""
    return (
        Without(change.since, LATEST.commit, change.name),
        Profile(change.since, LATEST.commit),
    )


def models_of(change: Change) -> list[str]:
    """The ids of the models that a row concerns."""
    return [spec.id for spec in list_models() if spec.arch.startswith(change.arch)]


def rows(names: Collection[str]) -> pytest.MarkDecorator:
    """A test for each of these rows of the table."""
    chosen = [change for change in CHANGES if change.name in names]
    return pytest.mark.parametrize("change", chosen, ids=lambda change: change.name)


def test_every_row_has_a_case():
    names = [*CASES, *BROUGHT, *BROUGHT_QTYPES]
    assert sorted(names) == sorted(change.name for change in CHANGES)


@rows(CASES.keys() - ONLY_ELSEWHERE)
def test_a_row_changes_the_sample(change, draw):
    before, after = (draw(change.name, profile) for profile in profiles_of(change))
    assert before.shape != after.shape or (before != after).any()
    assert CASES[change.name]["model"] in models_of(change)


@rows(ONLY_ELSEWHERE)
def test_a_row_changes_what_attention_is_given(change, draw, monkeypatch):
    attend, masked = F.scaled_dot_product_attention, []

    def watched(*tensors: Any, **options: Any) -> Any:
        masked.append(options.get("attn_mask") is not None)
        return attend(*tensors, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    counts = []
    for profile in profiles_of(change):
        masked.clear()
        draw(change.name, profile)
        counts.append((sum(masked), len(masked)))
    (before, calls), (after, calls_after) = counts
    assert calls == calls_after
    assert before > after


@rows(BROUGHT)
def test_a_row_brings_models(change, ask, engine, at):
    before, after = profiles_of(change)
    models = [spec.id for spec in list_models() if spec.since == change.name]
    assert models
    for model in models:
        at(before)
        with pytest.raises(InvalidInputError, match=f"version {change.since} does not have"):
            engine.plan(ask(model))
        at(after)
        assert engine.plan(ask(model)).spec.id == model


@rows(BROUGHT_QTYPES)
def test_a_row_brings_qtypes(change, ask, engine, at):
    before, after = profiles_of(change)
    qtypes = [qtype.name for qtype in QTYPES if qtype.since == change.name]
    assert qtypes
    for qtype in qtypes:
        at(before)
        with pytest.raises(InvalidInputError, match=f"version {change.since} has no qtype {qtype}"):
            engine.plan(ask("flux", quantize=qtype))
        at(after)
        assert engine.plan(ask("flux", quantize=qtype)).quantization.denoiser == qtype


@rows(CASES)
def test_goldens_show_the_pinned_versions_on_both_sides_of_a_row(change):
    model = CASES[change.name]["model"]
    shown = [model in models_drawn_by(profile) for profile in PROFILES]
    assert shown == [change.name not in OF_NEWER_MODELS, True]


def models_drawn_by(profile: Profile) -> set[str]:
    """The models that the trainer of a pinned version drew goldens with."""
    return {row.partition("-")[0] for row in MANIFEST[profile.version]["rows"]}
