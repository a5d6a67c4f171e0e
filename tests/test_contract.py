"""Every model id that users were promised is there, or docs/roadmap.md says why not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference import list_models
from ai_toolkit_inference.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
# The names that workflows, scripts and other tools use: none may vanish or change.
PROMISED = (
    "flux", "flux_kontext", "flux2", "flux2_diffusers", "flex1", "flex2", "sd15", "sdxl",
    "qwen_image", "qwen_image_2512", "qwen_image_edit", "qwen_image_edit_plus",
    "qwen_image_edit_plus_2511", "zimage_turbo", "zimage_deturbo", "wan21_14b", "wan21_1b",
    "wan21_i2v_14b", "wan21_i2v_14b480p", "wan22_14b_t2v", "wan22_14b_i2v", "wan22_5b", "chroma",
    "hidream", "hidream_e1", "lumina2", "omnigen2", "ltx2", "flux_schnell", "zimage",
    "flux2_klein_4b", "flux2_klein_9b", "ltx2.3", "krea2", "krea2_turbo", "krea2_o_edit",
    "krea2_o_edit_turbo", "minimax_h3",
)  # fmt: skip


def roadmap() -> dict[str, str]:
    """Model id -> why it is not there."""
    text = (ROOT / "docs" / "roadmap.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("model", PROMISED)
def test_a_promised_model_is_there_or_the_roadmap_says_why_not(model: str) -> None:
    there = model in {spec.id for spec in list_models()}
    assert there != (model in roadmap())


def test_the_roadmap_names_no_others_and_gives_reasons() -> None:
    assert set(roadmap()) <= set(PROMISED)
    assert all(len(reason) > 4 for reason in roadmap().values())


def test_the_command_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert list(rows) == [spec.id for spec in list_models()]
    for spec in list_models():
        row: dict[str, Any] = rows[spec.id]
        assert row["repo_id"] == spec.repo_id and row["arch"] == spec.arch
        assert row["defaults"]["steps"] == spec.defaults.steps
        assert row["components"] == list(spec.components)
        assert row["lora_prefixes"] == {p + spec.lora.separator: c for p, c in spec.lora.prefixes}
        assert row["negative_prompt"] == spec.negative_prompt
        assert set(row["trainer_versions"]) <= {"0.7.19", "0.12.26"} and row["trainer_versions"]
        assert (ROOT / row["page"]).is_file()
