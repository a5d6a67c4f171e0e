"""Values of our nodes' inputs that come from other nodes, in a real ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.core.errors import InvalidInputError, RemoteError

LORA = {"model": ["1", 0], "lora_name": "tiny"}
PROMPT = "a cat --w 72"


def graph(
    prompt: Any = PROMPT, multiplier: Any = 0.5, switches: Any = "", url: Any = ""
) -> dict[str, Any]:
    sample = {
        "model": ["2", 0], "prompt": prompt, "negative_prompt": "", "width": 64, "height": 64,
        "steps": 1, "guidance_scale": -1.0, "seed": 42, "switches": switches,
    }  # fmt: skip
    save = {"images": ["3", 0], "filename_prefix": "links"}
    nodes = {
        "1": ("LoadAIToolkitModel", {"model": "sd15", "weights": "tiny"}),
        "2": ("ApplyAIToolkitLoRA", LORA | {"multiplier": multiplier, "url": url}),
        "3": ("AIToolkitSample", sample),
        "4": ("SaveImage", save),
        "7": ("PrimitiveFloat", {"value": 0.5}),
        "8": ("PrimitiveString", {"value": ""}),
        "9": ("PrimitiveString", {"value": PROMPT}),
    }
    return {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}


def drawn(comfy: Any, workflow: dict[str, Any], folder: Path) -> np.ndarray:
    (file,) = run_workflow(comfy.url, workflow, folder, timeout=180).files
    return np.asarray(Image.open(file))


def test_values_of_other_nodes_draw_what_typed_ones_do(comfy: Any, tmp_path: Path) -> None:
    typed = drawn(comfy, graph(), tmp_path / "typed")
    assert typed.shape == (64, 72, 3)
    linked = graph(prompt=["9", 0], multiplier=["7", 0], switches=["8", 0], url=["8", 0])
    assert np.array_equal(drawn(comfy, linked, tmp_path / "linked"), typed)


def test_a_switch_that_the_model_has_not_is_refused(comfy: Any) -> None:
    with pytest.raises(RemoteError, match="unknown switch of sd15 'kv_cache'; allowed: none"):
        run_workflow(comfy.url, graph(switches="kv_cache=on"), timeout=120)
    with pytest.raises(InvalidInputError, match="switch 'kv_cache'; write NAME=on or NAME=off"):
        run_workflow(comfy.url, graph(switches="kv_cache"), timeout=120)
