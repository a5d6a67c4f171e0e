"""Writes the example workflows of all models: example_workflows/api/ and their editor twins.

    python scripts/example_workflows.py [--check] [--thumbnails]

They are made from the models' specs and the nodes' own inputs; --check only says what is stale.
The weights, the LoRA and the job are the tiny ones, so that every workflow runs as it is dropped.

NAME.jpg beside a workflow is what ComfyUI's list of templates shows: what the workflow draws. One
is drawn where it is missing, all with --thumbnails, as pixels are not the same on all machines.

index.json tells what each is. ComfyUI lists every .json file of the folder as a template, so it is
one as well: a page of notes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editor_format import editor_format
from example_graphs import Example, examples
from thumbnails import good_thumbnail, write_index_thumbnail, write_thumbnail

from ai_toolkit_inference.core.errors import MissingDependencyError

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
INDEX = "index"
INTRODUCTION = (
    "# All examples\n\nThe pack's other templates; there is nothing to run here. Open one from "
    "ComfyUI's list of templates. All run as they are, with tiny random weights."
)
OF_MODELS = 3  # as many groups of examples, the first ones
SHOWN = ("flux_lora", "wan21_1b_lora", "qwen_image_edit_lora", "lora_strength_clip")


def index(found: list[Example]) -> dict[str, Any]:
    """All examples, told to people in notes, and to programs in `extra`.

    The fields are those of the index of ComfyUI's own templates. A file with `templates` outside of
    `extra` is one of saved groups of nodes to ComfyUI's page, which takes them in.
    """
    groups: dict[str, list[str]] = {}
    for one in found:
        groups.setdefault(one.group, []).append(f"- **{one.name}**: {one.about}")
    sections = [f"# {group}\n\n" + "\n".join(lines) for group, lines in groups.items()]
    models, others = sections[:OF_MODELS], sections[OF_MODELS:]
    page = editor_format({}, ["\n\n".join([INTRODUCTION, *others]), *models], note_width=380)
    return page | {"extra": {"templates": [_entry(one) for one in found]}}


def _entry(one: Example) -> dict[str, str]:
    return {
        "name": one.name,
        "title": one.title,
        "description": one.about,
        "mediaType": "image",  # the thumbnail's
        "mediaSubtype": "jpg",
    }


def files(found: list[Example]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every JSON file, and what it has to hold."""
    for one in found:
        yield FOLDER / "api" / f"{one.name}.json", one.graph
        yield FOLDER / f"{one.name}.json", editor_format(one.graph, [one.note])
    yield FOLDER / f"{INDEX}.json", index(found)


def _draw(name: str, found: list[Example]) -> None:
    file = FOLDER / f"{name}.jpg"
    if name == INDEX:
        return write_index_thumbnail([FOLDER / f"{shown}.jpg" for shown in SHOWN], file)
    try:
        write_thumbnail(next(one for one in found if one.name == name), file)
    except MissingDependencyError as error:  # the trainer's own network
        sys.stdout.write(f"{file.name} was not drawn: {error}\n")


def main() -> int:
    found, check, stale = list(examples()), "--check" in sys.argv, []
    for name in (*(one.name for one in found), INDEX):
        if "--thumbnails" in sys.argv or not good_thumbnail(FOLDER / f"{name}.jpg"):
            stale.append(f"{name}.jpg")
            if not check:
                _draw(name, found)
    for path, content in files(found):
        text = json.dumps(content, indent=2) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {name}\n")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
