"""The LoRA node in a real ComfyUI: every kind of adapter, stacks, the report, links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, SampleRequest
from ai_toolkit_inference.cli.comfy_client import Event, run_workflow
from ai_toolkit_inference.core.errors import InvalidInputError, RemoteError
from ai_toolkit_inference.core.requests import AdapterRef, Recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows" / "api"
GOLDEN_LORAS = ROOT / "tests" / "goldens" / "loras"
KINDS = ("flux", "flux-lokr", "flux-dora", "flux-fullrank", "flux-diff")
SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def folder(comfy: Any) -> Path:
    """The server's loras folder with one file of each kind, and one that fits in part."""
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        source = GOLDEN_LORAS / f"{kind}-0.12.26.safetensors"
        (folder / f"{kind}.safetensors").write_bytes(source.read_bytes())
    tensors = load_file(folder / "flux.safetensors")
    for ending in ("lora_A.weight", "lora_B.weight"):
        key = next(key for key in tensors if key.endswith(ending))
        tensors[f"transformer.new_block.0.{ending}"] = tensors[key].clone()
    save_file(tensors, folder / "partial.safetensors")
    return folder


def graph(*loras: dict[str, Any]) -> dict[str, Any]:
    """The FLUX example, small, with these LoRA nodes one after the other, and their reports."""
    workflow = json.loads((EXAMPLES / "flux_lora.json").read_text(encoding="utf-8"))
    node = workflow.pop("2")
    last = "1"
    for number, inputs in enumerate(loras):
        name = f"2{number}"
        workflow[name] = {**node, "inputs": node["inputs"] | inputs | {"model": [last, 0]}}
        report = {"class_type": "PreviewAny", "inputs": {"source": [name, 1]}}
        workflow[f"9{number}"] = report
        last = name
    workflow["3"]["inputs"] |= {**SMALL, "model": [last, 0]}
    return workflow


def render(*adapters: AdapterRef, mode: str = "as_trainer") -> np.ndarray:
    sample = graph()["3"]["inputs"]
    request = SampleRequest(
        recipe=Recipe("flux", weights="tiny", adapters=adapters, mode=mode),
        prompt=sample["prompt"],
        trigger_word=sample["trigger_word"],
        seed=sample["seed"],
        **SMALL,
    )
    return Engine("cpu").sample(request).frames[0]


def report_of(result: Any, number: int = 0) -> str:
    return result.outputs[f"9{number}"]["text"][0]


def pixels(result: Any) -> np.ndarray:
    (file,) = result.files
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_what_the_engine_draws(comfy: Any, folder: Path, tmp_path, kind) -> None:
    workflow = graph({"lora_name": f"{kind}.safetensors", "multiplier": 0.7})
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120)
    drawn = render(AdapterRef(str(folder / f"{kind}.safetensors"), 0.7))
    assert np.array_equal(pixels(result), drawn)
    assert not np.array_equal(drawn, render())
    assert "with ai-toolkit 0.12.26" in report_of(result)
    assert "strongest blocks" in report_of(result)
    bound, total = report_of(result).split(" layers bound")[0].splitlines()[-1].split(" of ")
    assert bound == total


def test_a_stack_acts_in_order_with_its_multipliers(comfy: Any, folder: Path, tmp_path) -> None:
    names = [("flux-lokr", 0.8), ("flux", -0.4)]
    chain = [{"lora_name": f"{name}.safetensors", "multiplier": m} for name, m in names]
    result = run_workflow(comfy.url, graph(*chain), tmp_path, timeout=120)
    refs = [AdapterRef(str(folder / f"{name}.safetensors"), m) for name, m in names]
    assert np.array_equal(pixels(result), render(*refs))
    assert "LoKr" in report_of(result, 0)
    assert "peft LoRA" in report_of(result, 1)


def test_the_stack_example_runs(comfy: Any, tmp_path: Path) -> None:
    workflow = json.loads((EXAMPLES / "lora_stack.json").read_text(encoding="utf-8"))
    workflow["4"]["inputs"] |= SMALL
    assert run_workflow(comfy.url, workflow, tmp_path, timeout=120).files


def test_what_does_not_fit_is_refused_on_the_lora_node_before_loading(
    comfy: Any, folder: Path
) -> None:
    events: list[Event] = []
    workflow = graph({"lora_name": "partial.safetensors"})
    with pytest.raises(RemoteError, match=r"1 of \d+ layers name no module") as failure:
        run_workflow(comfy.url, workflow, on_event=events.append, timeout=120)
    assert "ApplyAIToolkitLoRA" in str(failure.value)
    assert not [event for event in events if event.kind == "text" and "Loading" in event.text]


def test_allow_partial_leaves_it_out_and_says_so(comfy: Any, folder: Path, tmp_path) -> None:
    workflow = graph({"lora_name": "partial.safetensors", "allow_partial": True})
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120)
    assert "1 name no module: transformer.new_block.0" in report_of(result)
    assert np.array_equal(pixels(result), render(AdapterRef(str(folder / "flux.safetensors"))))


def test_a_dora_is_not_merged(comfy: Any, folder: Path) -> None:
    workflow = graph({"lora_name": "flux-dora.safetensors", "mode": "merged"})
    with pytest.raises(RemoteError, match="is a DoRA, which cannot be merged"):
        run_workflow(comfy.url, workflow, timeout=120)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("lora.safetensors", "must start with https:// or hf://"),
        ("http://example.com/a.safetensors", "https"),
        ("hf://owner/repo", "names no file"),
        ("https://huggingface.co/owner/repo/tree/main", "not a file"),
        ("https://example.com/a.safetensors?token=secret", "is a secret"),
        ("https://example.com/a.ckpt", "only .safetensors"),
    ],
)
def test_a_wrong_link_is_refused_when_it_is_queued(comfy: Any, folder, url, said) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        run_workflow(comfy.url, graph({"url": url}), timeout=30)
    assert said in str(refusal.value)
    assert "=secret" not in str(refusal.value)


def test_a_link_to_a_private_address_is_refused(comfy: Any, folder: Path) -> None:
    workflow = graph({"url": "https://127.0.0.1/a.safetensors"})
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1") as failure:
        run_workflow(comfy.url, workflow, timeout=60)
    assert "ApplyAIToolkitLoRA" in str(failure.value)
