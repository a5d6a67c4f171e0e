"""The pack's templates as ComfyUI's dialog asks for them: the list, each graph, each thumbnail."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import pytest
from PIL import Image

from ai_toolkit_inference import get_model
from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.pipelines._vendor import trainer_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"


def test_templates_and_thumbnails_are_served(
    comfy: Any, comfyui: ModuleType, ask: Callable[..., Any]
) -> None:
    names = sorted(path.stem for path in EXAMPLES.glob("*.json"))
    assert sorted(ask("workflow_templates")[comfyui.PACK_NAME]) == names
    pack = urllib.parse.quote(comfyui.PACK_NAME)
    for name in names:
        address = f"{comfy.url}/api/workflow_templates/{pack}/{name}"
        with urllib.request.urlopen(f"{address}.json", timeout=30) as response:
            assert json.load(response)["nodes"]
        with urllib.request.urlopen(f"{address}.jpg", timeout=30) as response:
            assert response.headers["Content-Type"] == "image/jpeg"
            assert Image.open(io.BytesIO(response.read())).size == (256, 256)


def test_the_index_tells_of_every_template_and_opens_as_one() -> None:
    """ComfyUI lists it, as any .json file there; it has to be a graph that the editor can read."""
    index = json.loads((EXAMPLES / "index.json").read_text(encoding="utf-8"))
    assert "templates" not in index  # the page would take it for saved groups of nodes
    entries = index["extra"]["templates"]
    told = [entry["name"] for entry in entries]
    assert sorted([*told, "index"]) == sorted(path.stem for path in EXAMPLES.glob("*.json"))
    for entry in entries:
        assert all(entry[field] for field in ("title", "description"))
        assert (EXAMPLES / f"{entry['name']}.{entry['mediaSubtype']}").is_file()
    notes = "".join(node["widgets_values"][0] for node in index["nodes"])
    assert {node["type"] for node in index["nodes"]} == {"MarkdownNote"}
    assert all(f"**{name}**" in notes for name in told)


@pytest.mark.usefixtures("golden_bf16")
def test_the_job_template_finds_its_samples_identical(comfy: Any) -> None:
    workflow = json.loads((EXAMPLES / "api" / "job_compare.json").read_text(encoding="utf-8"))
    result = run_workflow(comfy.url, workflow, timeout=240)
    verdict = json.loads(result.outputs["3"]["text"][0])
    assert (verdict["identical"], verdict["drifted"]) == (2, 0)


@pytest.mark.parametrize("twin", sorted((EXAMPLES / "api").glob("*.json")), ids=lambda p: p.stem)
def test_every_twin_runs(comfy: Any, twin: Path, tmp_path: Path) -> None:
    workflow = json.loads(twin.read_text(encoding="utf-8"))
    model = workflow["1"]["inputs"].get("model", "sd15")  # the tiny job's
    spec = get_model(model)
    if spec.network and trainer_folder() is None:
        pytest.skip(f"{model}'s network is the trainer's own code, which is not here")
    files = run_workflow(comfy.url, workflow, tmp_path, lambda _: None, timeout=300).files
    assert files and (spec.task != "video" or files[0].suffix == ".mp4")
    for file in files:
        if file.suffix == ".mp4":
            with av.open(str(file)) as clip:
                assert len(list(clip.decode(video=0))) > 1
                assert bool(clip.streams.audio) == model.startswith("ltx2")
        else:
            low, high = Image.open(file).convert("L").getextrema()
            assert low < high
