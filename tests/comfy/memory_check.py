"""The engine in ComfyUI's memory management, in a process of its own.

    python memory_check.py TREE PACK, with TREE as a ComfyUI and the pack in it as PACK;
    PYTHONPATH has TREE and the folder of PACK.

Prints a line of JSON: what ComfyUI counts at each stage.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

tree, pack = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = ["main.py", "--cpu"]
os.chdir(tree)

import comfy.options  # noqa: E402  # type: ignore[import-not-found]

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy import model_management  # noqa: E402  # type: ignore[import-not-found]
from comfy.model_patcher import ModelPatcher  # noqa: E402  # type: ignore[import-not-found]

package = pack.name
_memory = importlib.import_module(f"{package}.nodes._memory")
Engine = importlib.import_module(f"{package}.engine").Engine
requests = importlib.import_module(f"{package}.core.requests")

stages: dict[str, Any] = {}


def counted() -> list[int]:
    """Bytes that ComfyUI counts of each of our models."""
    return [
        m.model.loaded_size()
        for m in model_management.current_loaded_models
        if type(m.model.model).__name__ == "AIToolkitModel"
    ]


def others() -> int:
    """Models of ComfyUI's own that are loaded."""
    return len(model_management.current_loaded_models) - len(counted())


def draw(engine: Any, recipe: Any) -> bytes:
    request = requests.SampleRequest(recipe, prompt="a cat", width=64, height=64, steps=1)
    with torch.inference_mode(), _memory.room_for(engine, recipe):
        return engine.sample(request).frames.tobytes()


engine = Engine("cpu")
foreign = ModelPatcher(torch.nn.Linear(64, 64), torch.device("cpu"), torch.device("cpu"))
model_management.load_models_gpu([foreign])
recipe = _memory.keep_while_used(engine, requests.Recipe("sd15", weights="tiny", dtype="fp32"))
first = draw(engine, recipe)
stages["sampled"] = counted()
stages["weights"] = engine.weight_bytes()
stages["others"] = others()
draw(engine, recipe)
stages["sampled again"] = counted()
model_management.unload_all_models()
stages["unloaded"] = counted()
stages["same bytes"] = draw(engine, recipe) == first
stages["loads"] = engine.loads
stages["counted again"] = counted()
other = _memory.keep_while_used(engine, requests.Recipe("sdxl", weights="tiny", dtype="fp32"))
draw(engine, other)
gc.collect()
stages["another model"] = counted() == [engine.weight_bytes()]
del recipe
gc.collect()
stages["still loaded"] = engine.loaded is not None
del other
gc.collect()
stages["gone"] = engine.loaded is None
model_management.cleanup_models()
stages["left"] = counted()
for state in ("DISABLED", "NORMAL_VRAM", "LOW_VRAM", "NO_VRAM"):
    model_management.vram_state = model_management.VRAMState[state]
    stages[state] = [_memory.offload_as_started(mode) for mode in ("auto", "none", "group")]
sys.stdout.write(json.dumps(stages) + "\n")
