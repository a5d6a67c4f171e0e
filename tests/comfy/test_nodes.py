"""The nodes in a real ComfyUI: what the editor sees, what the queue does, what users read."""

from __future__ import annotations

import copy
import io
import json
import math
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference import NODE_CLASS_MAPPINGS, Engine, SampleRequest, list_models
from ai_toolkit_inference.cli.comfy_client import Event, run_workflow
from ai_toolkit_inference.core.errors import CancelledError, InvalidInputError, RemoteError
from ai_toolkit_inference.core.requests import AdapterRef, Recipe
from ai_toolkit_inference.engine.files import save_animation

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows" / "api"
GOLDEN_LORAS = ROOT / "tests" / "goldens" / "loras"
NODES = tuple(NODE_CLASS_MAPPINGS)
SMALL = {"width": 96, "height": 64, "steps": 3}


@pytest.fixture(scope="module")
def loras(comfy: Any) -> dict[str, Path]:
    """Two LoRAs for sd15 and one for flux, in the server's loras folder."""
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, source in (
        ("a", "sd15-0.12.26"),
        ("b", "sd15-0.7.19"),
        ("flux", "flux-0.12.26"),
    ):
        files[name] = folder / f"{name}.safetensors"
        files[name].write_bytes((GOLDEN_LORAS / f"{source}.safetensors").read_bytes())
    return files


def graph(**inputs: Any) -> dict[str, Any]:
    """The sd15 example, small, with the given inputs set on whichever node has them."""
    workflow = json.loads((EXAMPLES / "sd15_lora.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        for name, value in (SMALL | inputs).items():
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return workflow


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _inputs(workflow: dict[str, Any]) -> dict[str, Any]:
    # ComfyUI adds what IS_CHANGED answered beside the inputs
    return {name: node["inputs"] for name, node in workflow.items()}


def render(lora: Path | None = None, multiplier: float = 1.0, **changes: Any) -> np.ndarray:
    """What the engine renders, in this process, for the same inputs as `graph`."""
    adapters = (AdapterRef(str(lora), multiplier),) if lora else ()
    sample = graph()["3"]["inputs"]
    inputs: dict[str, Any] = SMALL | {"seed": 42} | changes
    request = SampleRequest(
        recipe=Recipe("sd15", weights="tiny", adapters=adapters),
        prompt=sample["prompt"],
        trigger_word=sample["trigger_word"],
        **inputs,
    )
    return Engine("cpu").sample(request).frames[0]


def test_every_node_and_input_is_described(ask: Callable[..., Any]) -> None:
    info = ask("object_info")
    for name in NODES:
        node = info[name]
        assert node["category"] == "AI Toolkit"
        assert len(node["description"]) > 40
        assert all(node["output_tooltips"])
        for group in ("required", "optional"):
            for input_name, (_, *options) in node["input"].get(group, {}).items():
                assert options, input_name
                assert options[0]["tooltip"], input_name
    assert info["AIToolkitSaveVideo"]["output_node"]
    assert info["SaveVideo"]["python_module"] != info["AIToolkitSaveVideo"]["python_module"]


def test_model_list_and_sockets(ask: Callable[..., Any]) -> None:
    info = ask("object_info")
    models = info["LoadAIToolkitModel"]["input"]["required"]["model"][0]
    assert models == [spec.id for spec in list_models()]
    weights = info["LoadAIToolkitModel"]["input"]["required"]["weights"][0]
    assert weights[:2] == ["huggingface", "tiny"]
    assert info["AIToolkitSample"]["output"] == ["IMAGE", "AUDIO", "FLOAT", "STRING"]
    assert info["AIToolkitSample"]["output_name"] == ["images", "audio", "fps", "info"]
    assert info["AIToolkitSaveVideo"]["output"] == ["VIDEO"]


def test_picture_is_the_engines(comfy: Any, loras: dict[str, Path], tmp_path: Path) -> None:
    events: list[Event] = []
    workflow = graph(lora_name="a.safetensors", multiplier=0.8)
    result = run_workflow(comfy.url, workflow, tmp_path, events.append, timeout=120)
    (file,) = result.files
    assert np.array_equal(pixels(file), render(loras["a"], 0.8))
    steps = [event for event in events if event.kind == "progress" and event.node == "3"]
    assert [(step.value, step.total) for step in steps][-1] == (3, 3)
    assert result.previews >= 3
    assert _inputs(json.loads(Image.open(file).text["prompt"])) == _inputs(workflow)  # type: ignore[attr-defined]


def test_history_and_view_give_the_picture(
    comfy: Any, ask: Callable[..., Any], tmp_path: Path
) -> None:
    result = run_workflow(comfy.url, graph(seed=5), tmp_path, timeout=120)
    entry = ask(f"history/{result.prompt_id}")[result.prompt_id]
    assert entry["status"]["status_str"] == "success"
    (image,) = entry["outputs"]["4"]["images"]
    query = urllib.parse.urlencode(image)
    with urllib.request.urlopen(f"{comfy.url}/view?{query}", timeout=30) as response:
        shown = np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"))
    assert np.array_equal(shown, pixels(result.files[0]))


def test_second_run_is_cached_and_a_new_seed_runs_the_sampler_only(comfy: Any) -> None:
    run_workflow(comfy.url, graph(seed=11), timeout=120)
    again = run_workflow(comfy.url, graph(seed=11), timeout=120)
    assert again.executed_nodes == []
    other = run_workflow(comfy.url, graph(seed=12), timeout=120)
    assert other.executed_nodes == ["3", "4"]


def test_a_new_multiplier_does_not_reload_the_base(comfy: Any) -> None:
    run_workflow(comfy.url, graph(multiplier=0.3), timeout=120)
    events: list[Event] = []
    result = run_workflow(comfy.url, graph(multiplier=0.4), on_event=events.append, timeout=120)
    assert "3" in result.executed_nodes
    assert not [event.text for event in events if event.kind == "text" and "Loading" in event.text]


def test_branches_with_different_loras_render_as_each_alone(
    comfy: Any, loras: dict[str, Path], tmp_path: Path
) -> None:
    workflow = graph(lora_name="a.safetensors", filename_prefix="branch_a")
    for source, name in (("2", "12"), ("3", "13"), ("4", "14")):
        workflow[name] = copy.deepcopy(workflow[source])
    workflow["12"]["inputs"] |= {"lora_name": "b.safetensors", "multiplier": 0.5}
    workflow["13"]["inputs"] |= {"model": ["12", 0]}
    workflow["14"]["inputs"] |= {"images": ["13", 0], "filename_prefix": "branch_b"}
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120)
    drawn = {file.name[:8]: pixels(file) for file in result.files}
    assert np.array_equal(drawn["branch_a"], render(loras["a"]))
    assert np.array_equal(drawn["branch_b"], render(loras["b"], 0.5))
    assert not np.array_equal(drawn["branch_a"], drawn["branch_b"])


def test_interrupt_stops_within_a_step_and_the_next_run_is_right(
    comfy: Any, ask: Callable[..., Any], loras: dict[str, Path], tmp_path: Path
) -> None:
    seen: list[float] = []

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.node == "3":
            seen.append(event.value)
            if event.value == 2:
                threading.Thread(target=ask, args=("interrupt", {})).start()

    workflow = graph(lora_name="a.safetensors", seed=21, steps=200)
    with pytest.raises(CancelledError):
        run_workflow(comfy.url, workflow, on_event=stop, timeout=120)
    assert max(seen) < 100
    result = run_workflow(comfy.url, graph(lora_name="b.safetensors"), tmp_path, timeout=120)
    assert np.array_equal(pixels(result.files[0]), render(loras["b"]))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"model": "sd9"}, "unknown model 'sd9'; allowed: chroma, flex1"),
        ({"weights": "aitk/missing"}, "aitk/missing"),
        ({"dtype": "int8"}, "dtype"),
        ({"sampler": "magic"}, "sampler"),
        ({"lora_name": "missing.safetensors"}, "lora_name"),
        ({"seed": -1}, "seed"),
        ({"width": -8}, "width"),
        ({"width": 10**6}, "width"),
        ({"steps": -1}, "steps"),
        ({"steps": 10**6}, "steps"),
        ({"guidance_scale": -5.0}, "guidance_scale"),
        ({"multiplier": 1e9}, "multiplier=1000000000.0"),
        ({"prompt": "a cat --w wide"}, "prompt flag --w got 'wide'"),
        ({"denoise": 0.0}, "denoise"),
    ],
    ids=str,
)
def test_bad_inputs_are_refused_with_the_nodes_message(
    comfy: Any, loras: dict[str, Path], inputs: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        run_workflow(comfy.url, graph(**inputs), timeout=30)
    assert said in str(refusal.value)


def test_a_multiplier_that_is_no_number_is_refused(comfy: Any, loras: dict[str, Path]) -> None:
    with pytest.raises(InvalidInputError, match="multiplier=nan"):
        run_workflow(comfy.url, graph(multiplier=math.nan), timeout=30)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"lora_name": "flux.safetensors"}, "does not fit sd15"),
        ({"lora_name_low": "a.safetensors"}, "has one transformer"),
        ({"denoise": 0.5}, "needs latents"),
        ({"prompt": "a cat --s 0"}, "steps=0"),
        ({"sampler": "lcm", "steps": 60}, "at most 50"),
    ],
    ids=str,
)
def test_what_only_a_run_can_know_fails_on_the_node(
    comfy: Any, loras: dict[str, Path], inputs: dict[str, Any], said: str
) -> None:
    with pytest.raises(RemoteError) as failure:
        run_workflow(comfy.url, graph(**inputs), timeout=60)
    assert said in str(failure.value)


def test_a_local_folder_of_another_model_is_refused(comfy: Any, ask: Callable[..., Any]) -> None:
    from ai_toolkit_inference.pipelines._registry import get_model
    from ai_toolkit_inference.pipelines._tiny import write_tiny

    write_tiny(get_model("sdxl"), comfy.base / "models" / "diffusers" / "my sdxl")
    weights = ask("object_info/LoadAIToolkitModel")["LoadAIToolkitModel"]["input"]["required"]
    assert "diffusers/my sdxl" in weights["weights"][0]
    with pytest.raises(InvalidInputError, match="StableDiffusionXLPipeline"):
        run_workflow(comfy.url, graph(weights="diffusers/my sdxl"), timeout=30)
    sdxl = graph(model="sdxl", weights="diffusers/my sdxl")
    sdxl["3"]["inputs"]["model"] = ["1", 0]
    del sdxl["2"]
    assert run_workflow(comfy.url, sdxl, timeout=120).outputs


def test_latent_gives_the_size_and_with_denoise_the_content(comfy: Any, tmp_path: Path) -> None:
    workflow = graph(width=0, height=0, denoise=0.6, steps=5)
    workflow["9"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 128, "height": 64, "batch_size": 1},
    }
    workflow["3"]["inputs"]["latent"] = ["9", 0]
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120)
    assert pixels(result.files[0]).shape == (64, 128, 3)


@pytest.mark.parametrize("ending", ["mp4", "webm", "webp"])
def test_frames_become_a_clip(
    comfy: Any, webp_texts: Callable[[Path], dict[str, str]], tmp_path: Path, ending: str
) -> None:
    workflow = json.loads((EXAMPLES / "lora_strength_clip.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        node["inputs"] |= {k: v for k, v in SMALL.items() if k in node["inputs"]}
    workflow["40"]["inputs"]["format"] = ending
    workflow["41"] = {
        "class_type": "SaveImage",
        "inputs": {"images": workflow["40"]["inputs"]["images"], "filename_prefix": "frame"},
    }
    # the core node takes our VIDEO output
    workflow["42"] = {
        "class_type": "SaveVideo",
        "inputs": {
            "video": ["40", 0],
            "filename_prefix": "core",
            "format": "auto",
            "codec": "auto",
        },
    }
    extra = {"workflow": {"nodes": []}}
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=180, extra_pnginfo=extra)
    frames = np.stack([pixels(file) for file in sorted(tmp_path.rglob("frame*.png"))])
    (clip,) = [file for file in result.files if "lora_strength" in file.name]
    assert result.outputs["40"]["animated"] == [True]
    assert clip.suffix == f".{ending}"
    if ending == "webp":
        save_animation(frames, tmp_path / "ours.webp", 4, tags=webp_texts(clip))
        assert clip.read_bytes() == (tmp_path / "ours.webp").read_bytes()
    else:
        _check_video(clip, len(frames), workflow)
    (core,) = [file for file in result.files if file.name.startswith("core")]
    assert core.stat().st_size > 0


def _check_video(clip: Path, frames: int, workflow: dict[str, Any]) -> None:
    import av

    with av.open(str(clip)) as file:
        assert sum(1 for _ in file.decode(video=0)) == frames
        assert float(file.streams.video[0].average_rate or 0) == pytest.approx(4)
        tags = {key.lower(): value for key, value in file.metadata.items()}
    assert _inputs(json.loads(tags["prompt"])) == _inputs(workflow)
    assert json.loads(tags["workflow"]) == {"nodes": []}
