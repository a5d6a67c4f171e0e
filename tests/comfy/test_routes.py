"""The pack's routes in a real ComfyUI, and what nodes tell the page of a run."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ai_toolkit_inference import list_models
from ai_toolkit_inference.cli.comfy_client import run_workflow

TESTS = Path(__file__).resolve().parents[1]
LORAS = TESTS / "goldens" / "loras"
FILES = {"flux": "FLUX.1", "sd15": "sd_1.5", "zimage": "Z-Image"}


@pytest.fixture(scope="module")
def loras(comfy: Any) -> Path:
    """The server's loras folder: files of three models, a damaged one, and one outside of it."""
    folder = comfy.base / "models" / "loras"
    (folder / "routes").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        target = folder / "routes" / f"{name}.safetensors"
        target.write_bytes((LORAS / f"{name}-0.12.26.safetensors").read_bytes())
    (folder / "routes" / "broken.safetensors").write_bytes(b"no header")
    shutil.copy(folder / "routes" / "flux.safetensors", folder.parent / "outside.safetensors")
    return folder


def test_models_have_their_defaults(ask: Callable[..., Any]) -> None:
    told = ask("ai_toolkit/models")
    for spec in list_models():
        assert told[spec.id]["title"] == spec.title
        assert told[spec.id]["defaults"]["steps"] == spec.defaults.steps
    assert "num_frames" in told["flux"]["ignored"]
    assert "lora_name_low" not in told["wan22_14b_t2v"]["refused"]
    assert ask("api/ai_toolkit/models") == told


@pytest.mark.parametrize("model", FILES)
def test_files_are_sorted_by_their_headers(ask: Callable[..., Any], loras: Path, model) -> None:
    told = ask(f"ai_toolkit/loras?model={model}")
    for name, title in FILES.items():
        assert told[f"routes/{name}.safetensors"] == {"fits": name == model, "made_for": title}
    assert told["routes/broken.safetensors"] == {"fits": False, "made_for": ""}


def test_only_the_loras_list_is_told_of(ask: Callable[..., Any], comfy: Any, loras: Path) -> None:
    told = ask("ai_toolkit/loras?model=flux&path=../outside.safetensors")
    nodes = ask("object_info/ApplyAIToolkitLoRA")["ApplyAIToolkitLoRA"]
    assert sorted(told) == sorted(set(nodes["input"]["required"]["lora_name"][0]) - {"tiny"})
    assert not any("outside" in name for name in told)
    assert str(comfy.base) not in json.dumps(told)


def test_a_new_file_is_seen(ask: Callable[..., Any], loras: Path) -> None:
    file = loras / "routes" / "new.safetensors"
    file.write_bytes((LORAS / "flux-0.12.26.safetensors").read_bytes())
    assert ask("ai_toolkit/loras?model=flux")["routes/new.safetensors"]["fits"] is True
    file.write_bytes((LORAS / "sd15-0.12.26.safetensors").read_bytes())
    assert ask("ai_toolkit/loras?model=flux")["routes/new.safetensors"]["fits"] is False
    file.unlink()


@pytest.mark.parametrize("query", ["", "?model=", "?model=..%2F..%2Fetc", "?model=nothing"])
def test_bad_input_is_refused_as_json(comfy: Any, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{comfy.url}/ai_toolkit/loras{query}", timeout=30)
    assert refusal.value.code == 404
    error = json.loads(refusal.value.read())["error"]
    assert error["code"] == "model_not_found" and "allowed: " in error["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_routes_only_tell(comfy: Any, method: str) -> None:
    request = urllib.request.Request(f"{comfy.url}/ai_toolkit/loras", method=method)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == 405


def test_the_page_gets_the_scripts_once_and_what_they_read(ask: Callable[..., Any]) -> None:
    scripts = [path for path in ask("extensions") if path.endswith("/js/ai_toolkit.js")]
    assert scripts == ["/extensions/ai-toolkit-inference/js/ai_toolkit.js"]
    measured = ask("extensions/ai-toolkit-inference/exactness.json")
    assert {spec.id for spec in list_models()} >= set(measured)
    assert all(entry["exact"] <= entry["pictures"] for entry in measured.values())


def test_the_lora_node_tells_its_report(comfy: Any, tmp_path: Path) -> None:
    examples = TESTS.parent / "example_workflows" / "api"
    workflow = json.loads((examples / "flux_lora.json").read_text(encoding="utf-8"))
    workflow["3"]["inputs"] |= {"width": 64, "height": 64, "steps": 1}
    workflow["2"]["inputs"] |= {"lora_name": "tiny", "multiplier": 0.35}
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120)
    assert "layers bound" in result.outputs["2"]["text"][0]


@pytest.mark.usefixtures("golden_bf16")
def test_compared_samples_are_shown_as_pictures(comfy: Any, tmp_path: Path) -> None:
    load = {"job": "tiny", "step": "2"}
    drawn = {"model": ["1", 0], "samples": ["1", 1]}
    graph = {
        "1": {"class_type": "LoadAIToolkitJob", "inputs": load},
        "2": {"class_type": "AIToolkitRenderSamples", "inputs": drawn},
        "3": {
            "class_type": "AIToolkitCompareSamples",
            "inputs": {"job": ["1", 2], "images": ["2", 0]},
        },
    }
    result = run_workflow(comfy.url, graph, tmp_path, timeout=240)
    first, second = result.outputs["3"]["aitk_samples"]
    assert [(s["index"], s["verdict"]) for s in (first, second)] == [
        (0, "identical"),
        (1, "identical"),
    ]
    pictures = [open_picture(comfy, first[name]) for name in ("trainer", "rendered", "heatmap")]
    assert {picture.size for picture in pictures} == {(128, 96)}
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert not any(pictures[2].tobytes())


def open_picture(comfy: Any, file: dict[str, str]) -> Image.Image:
    with urllib.request.urlopen(f"{comfy.url}/view?{urllib.parse.urlencode(file)}") as response:
        return Image.open(response).copy()
