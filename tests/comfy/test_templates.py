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

from PIL import Image

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
