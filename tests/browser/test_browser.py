"""ComfyUI's page in a headless Chromium: workflows opened as users open them, run, and seen."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACK_NAME = "AI-Toolkit.Inference-1.0"

pytestmark = pytest.mark.browser

CORE_NODES = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 48, "batch_size": 2, "color": 3368601},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "core"}},
}


@pytest.fixture
def browse(
    node: str, chromium: str, url: str, shots: Path, request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    """browse(*arguments of browser_check.mjs) is its report."""
    shot = shots / f"{request.node.name.replace('[', '-').rstrip(']')}.png"

    def run(*arguments: str | Path) -> dict[str, Any]:
        command = [node, "browser_check.mjs", url, "--shot", shot, *arguments]
        environment = {**os.environ, "CHROMIUM": chromium}
        done = subprocess.run(
            command, cwd=HERE, env=environment, stdout=subprocess.PIPE, timeout=400, check=False
        )
        assert done.stdout, "the browser did not start; its reason is above"
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["failure"] is None, report
        assert done.returncode == 0 and shot.stat().st_size > 10_000
        return report

    return run


def small_example(name: str, folder: Path, side: int = 64) -> Path:
    """An API-format example with its pictures made small and its steps few."""
    workflow = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text())
    for node in workflow.values():
        if node["class_type"] == "LoadAIToolkitModel":
            node["inputs"]["dtype"] = "fp32"
        if node["class_type"] == "AIToolkitSample":
            node["inputs"].update(width=side, height=side, steps=3)
    target = folder / f"{name}.json"
    target.write_text(json.dumps(workflow))
    return target


def displayed(report: dict[str, Any], class_type: str) -> dict[str, Any]:
    return next(node for node in report["displayed"] if node["type"] == class_type)


def test_core_nodes(browse: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    workflow = tmp_path / "core.json"
    workflow.write_text(json.dumps(CORE_NODES))
    report = browse("--drop", workflow, "--show", "SaveImage")
    assert displayed(report, "SaveImage")["pictures"] == [[64, 48], [64, 48]]


def test_dropped_example_shows_its_picture(
    browse: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    report = browse("--drop", small_example("sd15_lora", tmp_path), "--show", "SaveImage")
    assert report["nodes"] == [
        "LoadAIToolkitModel",
        "ApplyAIToolkitLoRA",
        "AIToolkitSample",
        "SaveImage",
    ]
    assert report["links"] == 3 and report["not_in_list"] == []
    assert report["run"]["counts"]["progress"] >= 3
    assert displayed(report, "SaveImage")["pictures"] == [[64, 64]]


def test_dropped_example_shows_its_clip(
    browse: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    workflow = small_example("lora_strength_clip", tmp_path)
    report = browse("--drop", workflow, "--show", "AIToolkitSaveVideo")
    assert displayed(report, "AIToolkitSaveVideo")["videos"] == 1


def clip_graph(ending: str, crf: int = 5) -> dict[str, Any]:
    """Two colours, a second each, with two seconds of silence, and a brace in a text."""
    colour = {"width": 96, "height": 64, "batch_size": 8}
    saved = {"fps": 8.0, "filename_prefix": "a}clip", "format": ending, "crf": crf}
    sound = {"duration": 2.0, "sample_rate": 24000, "channels": 2}
    return {
        "1": {"class_type": "EmptyImage", "inputs": colour | {"color": 0x1E5AC8}},
        "2": {"class_type": "EmptyImage", "inputs": colour | {"color": 0xC81E5A}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {"class_type": "EmptyAudio", "inputs": sound},
        "5": {
            "class_type": "AIToolkitSaveVideo",
            "inputs": {"images": ["3", 0], "audio": ["4", 0], **saved},
        },
    }


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_clip_plays_and_brings_its_workflow_back(
    browse: Callable[..., dict[str, Any]], url: str, tmp_path: Path, ending: str
) -> None:
    workflow = tmp_path / "clip.json"
    workflow.write_text(json.dumps(clip_graph(ending)))
    report = browse("--drop", workflow, "--show", "AIToolkitSaveVideo", "--play")
    (video,) = report["played"]
    assert (video["error"], video["events"]) == (None, ["loadeddata", "ended"])
    assert video["size"] == [96, 64]
    assert video["duration"] == pytest.approx(2, abs=0.1)
    assert video["time"] == pytest.approx(video["duration"], abs=0.05)
    assert video["sound"] > 0
    assert video["colour"] == pytest.approx([0xC8, 0x1E, 0x5A], abs=6)

    (shown,) = report["run"]["outputs"]["5"]["images"]
    clip = tmp_path / shown["filename"]
    with urllib.request.urlopen(f"{url}/view?{urllib.parse.urlencode(shown)}") as response:
        clip.write_bytes(response.read())
    dropped = browse("--drop", clip, "--no-run")
    assert sorted(dropped["nodes"]) == sorted(report["nodes"])
    assert dropped["links"] == report["links"] == 4


def test_webp_brings_its_workflow_back(
    browse: Callable[..., dict[str, Any]], url: str, tmp_path: Path
) -> None:
    """One that the page's own run made: the graph as it is drawn, not the prompt alone."""
    workflow = tmp_path / "clip.json"
    workflow.write_text(json.dumps(clip_graph("webp")))
    report = browse("--drop", workflow, "--show", "AIToolkitSaveVideo")
    (shown,) = report["run"]["outputs"]["5"]["images"]
    clip = tmp_path / shown["filename"]
    with urllib.request.urlopen(f"{url}/view?{urllib.parse.urlencode(shown)}") as response:
        clip.write_bytes(response.read())
    with Image.open(clip) as image:
        texts = dict(text.split(":", 1) for text in image.getexif().values())
    assert set(texts) == {"prompt", "workflow"}
    dropped = browse("--drop", clip, "--no-run")
    assert sorted(dropped["nodes"]) == sorted(report["nodes"])
    assert dropped["links"] == report["links"] == 4


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_clip_of_a_script_brings_its_workflow_back(
    browse: Callable[..., dict[str, Any]], url: str, tmp_path: Path, ending: str
) -> None:
    """A file that carries the prompt alone."""
    from ai_toolkit_inference.cli.comfy_client import run_workflow

    workflow = clip_graph(ending)
    (clip,) = run_workflow(url, workflow, tmp_path, timeout=120).files
    report = browse("--drop", clip, "--no-run")
    assert sorted(report["nodes"]) == sorted(node["class_type"] for node in workflow.values())
    assert report["links"] == 4


def test_dropped_picture_brings_its_workflow_back(
    browse: Callable[..., dict[str, Any]], url: str, tmp_path: Path
) -> None:
    from ai_toolkit_inference.cli.comfy_client import run_workflow

    workflow = json.loads(small_example("sd15_lora", tmp_path).read_text())
    picture = run_workflow(url, workflow, tmp_path, timeout=300).files[0]
    report = browse("--drop", picture, "--no-run")
    assert sorted(report["nodes"]) == sorted(node["class_type"] for node in workflow.values())


@pytest.mark.parametrize("name", ["sd15_lora", "job_compare", "two_pass", "index"])
def test_template_opens(browse: Callable[..., dict[str, Any]], name: str) -> None:
    file = ROOT / "example_workflows" / f"{name}.json"
    opened = ("--template", name, "--source", PACK_NAME)
    if os.environ.get("COMFYUI_FRONTEND", "").startswith("1.27."):  # templates had no address yet
        opened = ("--drop", file)
    report = browse(*opened, "--no-run")
    editor = json.loads(file.read_text())
    assert report["nodes"] == [node["type"] for node in editor["nodes"]]
    assert report["links"] == len(editor["links"])
    assert report["not_in_list"] == [] and report["dialogs"] == []
