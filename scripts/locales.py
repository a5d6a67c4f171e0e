"""Writes locales/en/nodeDefs.json: the nodes' texts, which other languages translate.

    python scripts/locales.py [--check]

--check only says whether it is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ai_toolkit_inference import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ai_toolkit_inference.nodes import _comfy

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "locales" / "en" / "nodeDefs.json"
LISTS = ("list_jobs", "list_job_steps", "list_loras", "list_weights")  # they ask ComfyUI


def node_texts() -> dict[str, Any]:
    """What ComfyUI's page can show in another language: by node, input and output."""
    with mock.patch.multiple(_comfy, **dict.fromkeys(LISTS, list)):
        return {name: _texts(name, node) for name, node in NODE_CLASS_MAPPINGS.items()}


def _texts(name: str, node: Any) -> dict[str, Any]:
    outputs = enumerate(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True))
    return {
        "display_name": NODE_DISPLAY_NAME_MAPPINGS[name],
        "description": node.DESCRIPTION,
        "inputs": {key: _named(key, tooltip) for key, tooltip in _inputs(node.INPUT_TYPES())},
        "outputs": {str(index): _named(*texts) for index, texts in outputs},
    }


def _inputs(types: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("required", "optional"):
        for name, (_, options) in types.get(group, {}).items():
            yield name, options["tooltip"]


def _named(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def main() -> int:
    text = json.dumps(node_texts(), indent=2, ensure_ascii=False) + "\n"
    stale = not FILE.is_file() or FILE.read_text(encoding="utf-8") != text
    if "--check" in sys.argv:
        if stale:
            sys.stdout.write(
                f"{FILE.relative_to(ROOT)} is stale; run python scripts/locales.py and translate "
                "what is new in the other languages beside it\n"
            )
        return int(stale)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
