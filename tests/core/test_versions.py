"""Which of the trainer's behaviours a LoRA file asks for."""

from __future__ import annotations

import json

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.versions import (
    CHANGES,
    LATEST,
    PROFILES,
    get_profile,
    profile_for_adapters,
    trainer_version,
)


def saved_by(version: object, name: str = "ai-toolkit") -> dict[str, str]:
    return {"software": json.dumps({"name": name, "version": version, "repo": "x"})}


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("0.0.1", "0.7.19"),
        ("0.7.18", "0.7.19"),
        ("0.7.19", "0.7.19"),
        ("0.7.19.0", "0.7.19"),
        ("0.7.24", "0.7.19"),
        ("0.7.100", "0.7.19"),
        ("0.12.9", "0.7.19"),
        ("0.12.25", "0.7.19"),
        ("0.12.26", "0.12.26"),
        ("0.12.100", "0.12.26"),
        ("0.100.0", "0.12.26"),
        ("1", "0.12.26"),
    ],
)
def test_the_commit_is_the_newest_pinned_one_that_is_not_newer(version, profile):
    chosen = profile_for_adapters((saved_by(version),))
    assert chosen.version == version
    assert chosen.commit == get_profile(profile).commit


@pytest.mark.parametrize(
    ("version", "without"),
    [("0.7.24", False), ("0.9.0", False), ("0.9.1", True), ("0.12.25", True)],
)
def test_a_version_between_has_the_changes_up_to_it(version, without):
    chosen = profile_for_adapters((saved_by(version),))
    assert chosen.has("clip_prompt_without_ftfy") is without


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"software": ""},
        {"software": "ai-toolkit 0.7.19"},
        {"software": "{"},
        {"software": "[" * 100_000},
        {"software": '["0.7.19"]'},
        {"software": "null"},
        {"software": '{"name": "ai-toolkit"}'},
        {"version": "0.7.19"},
        saved_by("0.7.19", name="kohya_ss"),
        saved_by(None),
        saved_by(""),
        saved_by("0.7.19-dev"),
        saved_by("0..7"),
        saved_by("9" * 5000),
        saved_by("\u0660.\u0667"),
        saved_by("\u00b2"),
        saved_by(["0.7.19"]),
    ],
)
def test_without_a_readable_version_it_is_the_newest(metadata):
    assert trainer_version(metadata) is None
    assert profile_for_adapters((metadata,)) == LATEST


def test_several_adapters_have_to_agree():
    old, older, new = (saved_by(version) for version in ("0.7.19", "0.7.20", "0.12.26"))
    assert profile_for_adapters(()) == LATEST
    assert profile_for_adapters((old, older, {})).version == "0.7.20"
    assert profile_for_adapters((new, saved_by("0.10.0"))).version == "0.12.26"
    with pytest.raises(InvalidInputError, match=r"0\.7\.19, 0\.12\.26.*trainer_version"):
        profile_for_adapters((old, {}, new))


def test_adapters_have_to_agree_on_what_concerns_their_model():
    before, after = saved_by("0.9.13"), saved_by("0.9.14")
    assert profile_for_adapters((before, after), "flux").version == "0.9.14"
    with pytest.raises(InvalidInputError, match=r"0\.9\.13, 0\.9\.14"):
        profile_for_adapters((before, after), "zimage:turbo")


def test_adapters_may_differ_about_cached_text_where_there_is_none():
    before, after = saved_by("0.10.27"), saved_by("0.10.28")
    assert profile_for_adapters((before, after), "flux").version == "0.10.28"
    with pytest.raises(InvalidInputError, match=r"0\.10\.27, 0\.10\.28"):
        profile_for_adapters((before, after), "flux", cached_text=True)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_tells_the_pinned_versions_apart(change):
    answers = [profile.has(change.name) for profile in PROFILES]
    assert answers == sorted(answers)
    assert not answers[0]
    assert answers[-1]


def test_an_unknown_change_is_a_mistake():
    with pytest.raises(KeyError, match="clip_prompt_with_ftfy"):
        LATEST.has("clip_prompt_with_ftfy")


@pytest.mark.parametrize("version", ["auto", "0.8.0", "", None])
def test_only_pinned_versions_have_a_profile(version):
    with pytest.raises(InvalidInputError, match=r"allowed: 0\.7\.19, 0\.12\.26$"):
        get_profile(version)
    assert get_profile("0.7.19") == PROFILES[0]
