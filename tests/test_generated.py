"""What is generated from specs and results is up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ai_toolkit_inference import list_models

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", ["docs.py", "example_workflows.py"])
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


def test_every_node_has_a_help_page() -> None:
    from ai_toolkit_inference import NODE_CLASS_MAPPINGS

    for name in NODE_CLASS_MAPPINGS:
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), name
