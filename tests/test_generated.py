"""What is generated from specs and results is up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ai_toolkit_inference import list_models

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", ["docs.py", "example_workflows.py", "locales.py"])
def test_nothing_generated_is_stale(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_model_has_a_workflow_in_both_formats() -> None:
    for spec in list_models():
        name = f"{spec.id}_lora.json"
        api = json.loads((ROOT / "example_workflows" / "api" / name).read_text(encoding="utf-8"))
        editor = json.loads((ROOT / "example_workflows" / name).read_text(encoding="utf-8"))
        assert {node["class_type"] for node in api.values()} <= {n["type"] for n in editor["nodes"]}


def test_every_workflow_has_a_thumbnail() -> None:
    for workflow in (ROOT / "example_workflows").glob("*.json"):
        with Image.open(workflow.with_suffix(".jpg")) as thumbnail:
            assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 512


def test_every_model_has_a_page_and_its_sizes() -> None:
    pages = ROOT / "docs" / "models"
    counts = json.loads((pages / "parameters.json").read_text(encoding="utf-8"))
    for spec in list_models():
        assert set(counts[spec.id]) == set(spec.components)
        text = (pages / f"{spec.id}.md").read_text(encoding="utf-8")
        for heading in ("Settings", "Weights", "Memory", "LoRA", "Exactness", "Use it"):
            assert f"\n## {heading}\n" in text, (spec.id, heading)
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (pages / link).is_file(), (spec.id, link)


@pytest.mark.slow
def test_parameters_are_those_of_the_classes() -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "released_configs.py")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_node_has_a_help_page() -> None:
    from ai_toolkit_inference import NODE_CLASS_MAPPINGS

    for name in NODE_CLASS_MAPPINGS:
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), name
