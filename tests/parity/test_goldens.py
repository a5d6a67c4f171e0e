"""The engine against the pictures the trainer drew, stored with what drew them."""

from __future__ import annotations

import pytest
import sounds
from goldens import RESULTS, golden, golden_sounds, groups, incomparable, load_json
from harness import as_png, compare, draw
from rows import GOLDENS, KINDS, PROFILES, Row, all_rows

from ai_toolkit_inference import Engine, list_models
from ai_toolkit_inference.core.versions import get_profile

# Cases that hold the same weights: one qtype changes none, two have a second name or packing.
SAME_NUMBERS = (
    {"live", "uint8"},
    {"convrot8", "convrotint8"},
    {"convrotint2", "convrotbitnet"},
)
ROWS = [(profile, row) for profile in PROFILES for row in all_rows(profile)]


@pytest.fixture(scope="module")
def cpu() -> Engine:
    return Engine("cpu")


@pytest.mark.parametrize(("profile", "row"), ROWS, ids=lambda value: getattr(value, "id", value))
def test_pixels_are_the_trainers(cpu: Engine, row: Row, profile: str) -> None:
    if reason := incomparable(profile, row):
        pytest.skip(reason)
    samples = [draw(cpu, row, profile, sample) for sample in row.samples()]
    for sample, theirs in zip(samples, golden(profile, row), strict=True):
        # kernels of other processors may put a stored fp32 picture a level off
        assert compare(as_png(sample), theirs).most <= 1
    assert sounds.are_close(sounds.of_samples(samples), golden_sounds(profile, row))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_model_has_rows_and_goldens(profile: str) -> None:
    rows = list(all_rows(profile))
    version = get_profile(profile)
    known = {spec.id for spec in list_models() if not spec.since or version.has(spec.since)}
    assert {row.model.id for row in rows} == known
    assert set(load_json(GOLDENS / "manifest.json")[profile]["rows"]) == {row.id for row in rows}


@pytest.mark.parametrize("profile", PROFILES)
def test_results_are_of_all_rows(profile: str) -> None:
    results = load_json(RESULTS)
    for group, rows in groups(profile).items():
        lines = [entry for key, entry in results.items() if key.startswith(f"{group} cpu ")]
        assert len(lines) == 3, f"{group}: a library line is missing"
        pictures = sum(len(row.samples()) for row in rows)
        assert {entry["pictures"] for entry in lines} == {pictures}, f"compare --store {group}"
        assert all(entry["exact"] == pictures for entry in lines), group


def test_the_rows_tell_cases_apart() -> None:
    rows = load_json(GOLDENS / "manifest.json")["0.12.26"]["rows"]
    for model in list_models():
        pictures = [rows[f"{model.id}-bf16-{case}"] for case in ("plain", "merged", "live")]
        assert len({names[0] for names in pictures}) == 3, model.id
        assert rows[f"{model.id}-fp32-plain"] != rows[f"{model.id}-bf16-plain"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_rows_tell_kinds_and_ways_apart(profile: str) -> None:
    rows = load_json(GOLDENS / "manifest.json")[profile]["rows"]
    of_sd = ("-cached", "-qfloat8")  # of SD and SDXL nothing is quantized
    for model in KINDS:
        drawn: dict[str, set[str]] = {}
        for row, names in rows.items():
            if row.startswith(f"{model}-bf16-") and not row.endswith(of_sd):
                drawn.setdefault(names[0], set()).add(row.removeprefix(f"{model}-bf16-"))
        for cases in drawn.values():
            assert len(cases) == 1 or cases in SAME_NUMBERS, model


def test_the_versions_differ_in_live_lokr_only() -> None:
    old, new = (load_json(GOLDENS / "manifest.json")[profile]["rows"] for profile in PROFILES)
    kinds = {row.id: row.kinds for row in all_rows(PROFILES[0]) if row.kinds != ("lora",)}
    for row in (row for row in kinds if "-bf16-" in row):
        live_lokr = row.endswith("_live") and kinds[row][0].startswith("lokr")
        assert (old[row] != new[row]) == live_lokr, row


def test_the_versions_differ_where_prompts_are_tokenized_differently() -> None:
    manifest = load_json(GOLDENS / "manifest.json")
    old, new = (manifest[profile]["rows"]["sd15-fp32-plain"] for profile in PROFILES)
    assert old[0] == new[0]
    assert old[1] != new[1]  # the prompt with a curly quote


def test_cached_text_kept_its_trigger_words_in_the_old_version_only() -> None:
    manifest = load_json(GOLDENS / "manifest.json")
    for profile, kept in zip(PROFILES, (True, False), strict=True):
        rows = manifest[profile]["rows"]
        plain, cached = (rows[f"flux-fp32-{case}"][0] for case in ("plain", "cached"))
        assert (plain != cached) == kept
