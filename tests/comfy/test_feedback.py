"""What users see and can stop while the nodes work, and how errors call their files."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference import get_model
from ai_toolkit_inference.cli.comfy_client import Event, run_workflow
from ai_toolkit_inference.core.errors import CancelledError, InvalidInputError, RemoteError
from ai_toolkit_inference.pipelines._tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows" / "api"
GOLDEN_LORAS = ROOT / "tests" / "goldens" / "loras"
SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def folder(comfy: Any) -> Path:
    """The server's loras folder, with one for flux in a folder of its own."""
    folder = comfy.base / "models" / "loras"
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    data = (GOLDEN_LORAS / "flux-0.12.26.safetensors").read_bytes()
    (folder / "mine" / "flux.safetensors").write_bytes(data)
    (folder / "broken.safetensors").write_bytes(data[: len(data) // 2])
    return folder


def graph(example: str = "flux_lora", **inputs: Any) -> dict[str, Any]:
    """An example, small, with inputs set on whichever node has them."""
    workflow = json.loads((EXAMPLES / f"{example}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        for name, value in (SMALL | inputs).items():
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return workflow


def with_inputs(workflow: dict[str, Any], kind: str, **inputs: Any) -> dict[str, Any]:
    for node in workflow.values():
        if node["class_type"] == kind:
            node["inputs"] |= inputs
    return workflow


def without_lora(workflow: dict[str, Any]) -> dict[str, Any]:
    (lora,) = [n for n, node in workflow.items() if node["class_type"] == "ApplyAIToolkitLoRA"]
    source = workflow.pop(lora)["inputs"]["model"]
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if value == [lora, 0]:
                node["inputs"][name] = source
    return workflow


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if event.kind == "text"]


def stop_when(ask: Callable[..., Any], start: str, seen: list[Event]) -> Callable[[Event], None]:
    """Presses the stop button when a node says this."""
    pressed = threading.Event()

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.kind == "text" and event.text.startswith(start) and not pressed.is_set():
            pressed.set()
            threading.Thread(target=ask, args=("interrupt", {})).start()

    return on_event


def free(ask: Callable[..., Any]) -> None:
    ask("free", {"unload_models": True, "free_memory": True})


def test_loading_quantizing_and_sampling_are_told_on_the_node(comfy: Any, ask: Any) -> None:
    events: list[Event] = []
    workflow = with_inputs(
        without_lora(graph(seed=901)), "LoadAIToolkitModel", quantize="convrot8", dtype="fp32"
    )
    result = run_workflow(comfy.url, workflow, on_event=events.append, timeout=180)
    said = texts(events)
    assert all(one != next_one for one, next_one in itertools.pairwise(said))
    title = get_model("flux").title
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert f"Loading {title}: {part}" in said
    for part in ("transformer", "text_encoder_2"):
        assert any(
            re.fullmatch(rf"Quantizing {part} to convrot8, 0 of \d+ layers", t) for t in said
        )
    phases = [text for text in said if text in ("Encoding the prompt", "Sampling", "Decoding")]
    assert list(dict.fromkeys(phases)) == ["Encoding the prompt", "Sampling", "Decoding"]
    (sampler,) = {event.node for event in events if event.text == "Sampling"}
    assert workflow[str(sampler)]["class_type"] == "AIToolkitSample"
    assert result.previews >= 2


@pytest.mark.parametrize("start", ["Loading Wan", "Quantizing", "Sampling"])
def test_stop_is_obeyed_in_every_phase_and_the_next_run_works(
    comfy: Any, ask: Any, start: str
) -> None:
    seen: list[Event] = []
    workflow = without_lora(graph(seed=902, steps=300))
    inputs = {"model": "wan21_1b", "quantize": "orbit2"}
    with_inputs(workflow, "LoadAIToolkitModel", **inputs)
    with_inputs(workflow, "AIToolkitSample", num_frames=5)
    free(ask)
    with pytest.raises(CancelledError):
        run_workflow(comfy.url, workflow, on_event=stop_when(ask, start, seen), timeout=180)
    assert max((event.value for event in seen if event.kind == "progress"), default=0) < 150
    again = with_inputs(workflow, "AIToolkitSample", steps=2)
    assert run_workflow(comfy.url, again, timeout=180).outputs


def test_written_frames_are_told_and_writing_stops_within_one(
    comfy: Any, ask: Any, tmp_path: Path
) -> None:
    workflow = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 60, "color": 5},
        },
        "2": {
            "class_type": "AIToolkitSaveVideo",
            "inputs": {
                "images": ["1", 0], "fps": 8.0, "filename_prefix": "told", "format": "webm",
            },
        },
    }  # fmt: skip
    seen: list[Event] = []
    with pytest.raises(CancelledError):
        stop = stop_when(ask, "Writing the clip: ", seen)
        run_workflow(comfy.url, workflow, on_event=stop, timeout=120)
    written = [int(text.split()[3]) for text in texts(seen) if text.startswith("Writing")]
    assert written and written[-1] < 60
    assert not list((comfy.base / "output").glob("told*"))
    seen.clear()
    assert run_workflow(comfy.url, workflow, tmp_path, seen.append, timeout=120).files
    assert texts(seen)[-1] == "Writing the clip: 60 of 60 frames"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"lora_name": "mine/flux.safetensors"},
            "lora_name mine/flux.safetensors does not fit sd15",
        ),
        ({"lora_name": "broken.safetensors"}, "lora_name broken.safetensors"),
        (
            {"lora_name": "tiny", "lora_name_low": "mine/flux.safetensors"},
            "lora_name_low mine/flux.safetensors",
        ),
        ({"url": "https://127.0.0.1/a.safetensors"}, "url: "),
    ],
    ids=str,
)
def test_a_lora_is_called_as_its_input_has_it(
    comfy: Any, folder: Path, inputs: dict[str, Any], said: str
) -> None:
    workflow = with_inputs(graph("sd15_lora"), "ApplyAIToolkitLoRA", **inputs)
    with pytest.raises(RemoteError) as failure:
        run_workflow(comfy.url, workflow, timeout=60)
    assert said in str(failure.value)
    assert str(comfy.base) not in str(failure.value)


def test_later_errors_call_files_as_listed(comfy: Any, folder: Path) -> None:
    data = (GOLDEN_LORAS / "flux-dora-0.12.26.safetensors").read_bytes()
    (folder / "mine" / "dora.safetensors").write_bytes(data)
    workflow = graph(lora_name="mine/dora.safetensors")
    with_inputs(workflow, "ApplyAIToolkitLoRA", mode="merged")
    with pytest.raises(RemoteError, match=r"mine/dora\.safetensors is a DoRA") as failure:
        run_workflow(comfy.url, workflow, timeout=60)
    assert str(comfy.base) not in str(failure.value)


def test_weights_are_called_as_listed(comfy: Any) -> None:
    home = comfy.base / "models" / "diffusers" / "told sdxl"
    write_tiny(get_model("sdxl"), home)
    workflow = graph("sd15_lora", weights="diffusers/told sdxl")
    with pytest.raises(InvalidInputError, match="diffusers/told sdxl is a StableDiff") as refusal:
        run_workflow(comfy.url, workflow, timeout=30)
    assert str(comfy.base) not in str(refusal.value)
    next((home / "unet").glob("*.safetensors")).write_bytes(b"damaged")
    workflow = without_lora(graph("sd15_lora", model="sdxl", weights="diffusers/told sdxl"))
    with pytest.raises(RemoteError, match="diffusers/told sdxl could not be loaded") as failure:
        run_workflow(comfy.url, workflow, timeout=60)
    assert str(comfy.base) not in str(failure.value)
