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


@pytest.mark.parametrize("twin", sorted((EXAMPLES / "api").glob("*.json")), ids=lambda p: p.stem)
def test_every_twin_runs(comfy: Any, twin: Path, tmp_path: Path) -> None:
    workflow = json.loads(twin.read_text(encoding="utf-8"))
    model = next(
        node["inputs"]["model"]
        for node in workflow.values()
        if node["class_type"] == "LoadAIToolkitModel"
    )
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
