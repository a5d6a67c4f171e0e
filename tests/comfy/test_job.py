"""A training job's folder in a real ComfyUI: loaded, drawn again, compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.core.errors import InvalidInputError, RemoteError
from ai_toolkit_inference.jobs.folder import job_folder

FOLDERS = Path(__file__).resolve().parents[1] / "jobs" / "folders"
TINY = "tiny"
FOREIGN = "merged_flux"  # its base is on another machine


@pytest.fixture(scope="module", autouse=True)
def jobs(comfy: Any) -> None:
    """The jobs, in the server's aitk_jobs folder."""
    target = comfy.base / "models" / "aitk_jobs"
    for folder in FOLDERS.iterdir():
        shutil.copytree(folder, target / folder.name, dirs_exist_ok=True)


def graph(step: str = "2", only: str = "", **job: Any) -> dict[str, Any]:
    load = {"job": TINY, "step": step} | job
    return {
        "1": {"class_type": "LoadAIToolkitJob", "inputs": load},
        "2": {
            "class_type": "AIToolkitRenderSamples",
            "inputs": {"model": ["1", 0], "samples": ["1", 1], "only": only},
        },
        "3": {
            "class_type": "AIToolkitCompareSamples",
            "inputs": {"job": ["1", 2], "images": ["2", 0], "only": only},
        },
        "4": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "job"},
        },
        "5": {
            "class_type": "SaveImage",
            "inputs": {"images": ["3", 2], "filename_prefix": "sides"},
        },
    }


def test_the_lists_show_the_jobs(ask: Callable[..., Any]) -> None:
    required = ask("object_info")["LoadAIToolkitJob"]["input"]["required"]
    assert required["job"][0] == [*sorted(folder.name for folder in FOLDERS.iterdir()), TINY]
    assert required["step"][0] == ["latest", "0", "2", "4"]


@pytest.mark.usefixtures("golden_bf16")
def test_a_job_is_drawn_again_and_found_identical(comfy: Any, tmp_path: Path) -> None:
    result = run_workflow(comfy.url, graph(), tmp_path, timeout=240)
    verdict = json.loads(result.outputs["3"]["text"][0])
    assert (verdict["identical"], verdict["drifted"]) == (2, 0)
    ours = sorted(file for file in result.files if file.name.startswith("job"))
    theirs = sorted((job_folder(TINY) / "samples").glob("*__000000002_*.png"))
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
    sides = [file for file in result.files if file.name.startswith("sides")]
    assert {Image.open(file).size for file in sides} == {(128 * 3 + 8, 96), (104 * 3 + 8, 64)}


def test_one_sample_alone(comfy: Any) -> None:
    result = run_workflow(comfy.url, graph(step="latest", only="1"), timeout=240)
    (sample,) = json.loads(result.outputs["3"]["text"][0])["samples"]
    assert (sample["index"], sample["step"]) == (1, 4)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"step": "3"}, InvalidInputError, "step"),
        ({"job": "nowhere"}, InvalidInputError, "job"),
        ({"job": FOREIGN}, RemoteError, "neither .* nor a path on this machine"),
        ({"only": "7"}, RemoteError, "there is no number 7"),
        ({"only": "first"}, RemoteError, "numbers with commas"),
    ],
)
def test_what_is_not_there_is_refused(
    comfy: Any, changes: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_workflow(comfy.url, graph(**changes), timeout=120)
