"""The engine's model among ComfyUI's own: counted, evicted, reloaded, and gone with its nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ai_toolkit_inference.cli.comfy_client import Event, run_workflow

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "example_workflows" / "api" / "sd15_lora.json"
CORE = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "core"}},
}


@pytest.fixture(scope="module")
def stages(comfyui: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What memory_check.py saw."""
    pack = tmp_path_factory.mktemp("pack") / "pack_in_comfyui"
    pack.symlink_to(HERE.parents[1], target_is_directory=True)
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    tree = comfyui.find_tree()
    command = [python, str(HERE / "memory_check.py"), str(tree), str(pack)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tree, pack.parent)))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_comfyui_counts_the_model_once(stages: dict[str, Any]) -> None:
    assert stages["weights"] > 1_000_000
    assert stages["sampled"] == stages["sampled again"] == [stages["weights"]]
    assert stages["another model"]


def test_comfyui_evicts_it_and_the_next_run_puts_it_back(stages: dict[str, Any]) -> None:
    assert stages["unloaded"] == []
    assert stages["same bytes"]
    assert stages["counted again"] == [stages["weights"]]
    assert stages["loads"] == 1, "evicted weights wait in memory; they are not read again"


def test_other_models_stay_where_there_is_room(stages: dict[str, Any]) -> None:
    assert stages["others"] == 1


def test_the_model_goes_with_the_last_output_that_names_it(stages: dict[str, Any]) -> None:
    assert stages["still loaded"]
    assert stages["gone"]
    assert stages["left"] == []


def test_auto_follows_how_comfyui_was_started(stages: dict[str, Any]) -> None:
    assert stages["DISABLED"] == stages["NORMAL_VRAM"] == ["auto", "none", "group"]
    assert stages["LOW_VRAM"] == ["model", "none", "group"]
    assert stages["NO_VRAM"] == ["sequential", "none", "group"]


def _graph(seed: int) -> dict[str, Any]:
    workflow = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    workflow["3"]["inputs"] |= {"seed": seed, "width": 64, "height": 64, "steps": 1}
    return workflow


def _loads(comfy: Any, workflow: dict[str, Any]) -> bool:
    events: list[Event] = []
    run_workflow(comfy.url, workflow, on_event=events.append, timeout=120)
    return any(event.kind == "text" and "Loading" in event.text for event in events)


def test_free_drops_the_model_and_the_next_run_loads_it(
    comfy: Any, ask: Callable[..., Any]
) -> None:
    _loads(comfy, _graph(seed=1))
    assert not _loads(comfy, _graph(seed=2))
    ask("free", {"unload_models": True, "free_memory": True})
    assert _loads(comfy, _graph(seed=2))


def test_a_workflow_without_the_pack_lets_the_model_go(comfy: Any) -> None:
    _loads(comfy, _graph(seed=3))
    run_workflow(comfy.url, CORE, timeout=60)
    assert _loads(comfy, _graph(seed=3))
