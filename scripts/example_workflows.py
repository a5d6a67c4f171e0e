"""Writes the example workflows of all models: example_workflows/api/ and their editor twins.

    python scripts/example_workflows.py [--check] [--thumbnails]

They are made from the models' specs and the nodes' own inputs; --check only says what is stale.
The weights and the LoRA are the tiny ones, so that every workflow runs as it is dropped.

NAME.jpg beside a workflow is what ComfyUI's list of templates shows: what the workflow draws. One
is drawn where it is missing, all with --thumbnails, as pixels are not the same on all machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from thumbnails import good_thumbnail, write_thumbnail

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import MissingDependencyError
from ai_toolkit_inference.core.specs import ModelSpec

FOLDER = Path(__file__).resolve().parent.parent / "example_workflows"
PROMPT = "a photo of [trigger] cat on the beach, soft light"
CONTROL_IMAGE = "example.png"  # ComfyUI brings it
VIDEO_SETTINGS = {"width": 128, "height": 128, "steps": 4, "num_frames": 9}
SWEEP = (0.0, 0.5, 1.0, 1.5)
NOTE = (
    "Runs as it is, with tiny random weights. For real pictures choose `huggingface` or a folder "
    "as weights and your own file as lora_name, and write your trigger word.\n\n"
    "Small and quick, to begin with: set width, height and steps to 0 for the trainer's own "
    "(-1 for guidance)."
)
NEEDS_TRAINER = (
    "\n\nThis model's network is the trainer's own code: run `python install.py` in the pack's "
    "folder first."
)

# Editor nodes of each class: inputs that are sockets, inputs that are widgets (in the order the
# editor keeps their values), outputs. A seed has a second widget for what follows each run.
SHAPES: dict[str, tuple[dict[str, str], list[str], dict[str, str]]] = {
    "LoadAIToolkitModel": (
        {},
        [
            "model", "weights", "dtype", "quantize", "trainer_version", "offload", "quantize_te",
            "layer_offloading", "low_vram",
        ],
        {"model": "AITK_MODEL"},
    ),
    "ApplyAIToolkitLoRA": (
        {"model": "AITK_MODEL"},
        ["lora_name", "multiplier", "lora_name_low", "mode", "allow_partial", "url", "role"],
        {"model": "AITK_MODEL", "report": "STRING"},
    ),
    "AIToolkitSample": (
        {
            "model": "AITK_MODEL",
            "control_image_1": "IMAGE",
            "control_image_2": "IMAGE",
            "control_image_3": "IMAGE",
            "latent": "LATENT",
        },
        [
            "prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed",
            "control_after_generate", "num_frames", "fps", "trigger_word", "sampler",
            "cached_text", "control_index", "doubled_control", "denoise",
        ],
        {"images": "IMAGE", "audio": "AUDIO", "fps": "FLOAT", "info": "STRING"},
    ),
    "LoadImage": ({}, ["image"], {"IMAGE": "IMAGE", "MASK": "MASK"}),
    "ImageBatch": ({"image1": "IMAGE", "image2": "IMAGE"}, [], {"IMAGE": "IMAGE"}),
    "SaveImage": ({"images": "IMAGE"}, ["filename_prefix"], {}),
    "AIToolkitSaveVideo": (
        {"images": "IMAGE", "audio": "AUDIO"},
        ["fps", "filename_prefix", "format", "crf"],
        {"video": "VIDEO"},
    ),
}  # fmt: skip


def picture(spec: ModelSpec, control: bool) -> dict[str, Any]:
    """Model, LoRA, a control image if asked for, sample, picture or clip; API format."""
    sockets = {"control_image_1": ["5", 0]} if control else {}
    settings = _sample() | (VIDEO_SETTINGS if spec.defaults.num_frames > 1 else {})
    graph = {
        "1": _node("LoadAIToolkitModel", **_load(spec.id)),
        "2": _node(
            "ApplyAIToolkitLoRA", model=["1", 0], **_lora(1.0, pair=bool(spec.lora.experts))
        ),
    }
    if control:
        graph["5"] = _node("LoadImage", image=CONTROL_IMAGE)
        settings |= {"control_index": int(spec.control_images.index)}  # it has no alpha to inpaint
    graph["3"] = _node("AIToolkitSample", model=["2", 0], **settings, **sockets)
    return graph | {"4": _save(spec)}


def _save(spec: ModelSpec) -> dict[str, Any]:
    prefix = f"aitk/{spec.id}"
    if spec.defaults.num_frames == 1:
        return _node("SaveImage", images=["3", 0], filename_prefix=prefix)
    clip = {"fps": float(spec.defaults.fps), "filename_prefix": prefix, "format": "mp4", "crf": 19}
    return _node("AIToolkitSaveVideo", images=["3", 0], audio=["3", 1], **clip)


def stack(model: str) -> dict[str, Any]:
    """Two LoRAs on one model, in this order, with multipliers of their own; API format."""
    return {
        "1": _node("LoadAIToolkitModel", **_load(model)),
        "2": _node("ApplyAIToolkitLoRA", model=["1", 0], **_lora(1.0)),
        "3": _node("ApplyAIToolkitLoRA", model=["2", 0], **_lora(-0.4)),
        "4": _node("AIToolkitSample", model=["3", 0], **_sample()),
        "5": _node("SaveImage", images=["4", 0], filename_prefix="aitk/lora_stack"),
    }


def strength_clip(model: str) -> dict[str, Any]:
    """One sample at rising LoRA multipliers, as frames of a clip; API format."""
    graph = {"1": _node("LoadAIToolkitModel", **_load(model))}
    frames: list[Any] = []
    for index, multiplier in enumerate(SWEEP):
        lora, sample = str(10 + index), str(20 + index)
        graph[lora] = _node("ApplyAIToolkitLoRA", model=["1", 0], **_lora(multiplier))
        graph[sample] = _node("AIToolkitSample", model=[lora, 0], **_sample())
        frames.append([sample, 0])
    batch = frames[0]
    for index, frame in enumerate(frames[1:]):
        graph[str(30 + index)] = _node("ImageBatch", image1=batch, image2=frame)
        batch = [str(30 + index), 0]
    clip = {"fps": 4.0, "filename_prefix": "aitk/lora_strength", "format": "mp4", "crf": 19}
    return graph | {"40": _node("AIToolkitSaveVideo", images=batch, **clip)}


def workflows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and graph, API format, of every example."""
    for spec in list_models():
        taken = spec.control_images
        always = bool(taken.required) or (spec.task == "edit")
        yield f"{spec.id}_lora", picture(spec, control=always)
        if taken.most and not always:
            yield f"{spec.id}_edit", picture(spec, control=True)
    yield "lora_strength_clip", strength_clip("sd15")
    yield "lora_stack", stack("flux")


def editor_format(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The graph as ComfyUI's editor saves it, laid out in columns, with a note."""
    numbers = {name: index + 1 for index, name in enumerate(graph)}
    links: list[list[Any]] = []
    nodes = []
    for name, node in graph.items():
        sockets, widgets, outputs = SHAPES[node["class_type"]]
        inputs = []
        for slot, (socket, kind) in enumerate(sockets.items()):
            source = node["inputs"].get(socket)
            if source is not None:
                links.append(
                    [len(links) + 1, numbers[source[0]], source[1], numbers[name], slot, kind]
                )
            inputs.append({"name": socket, "type": kind, "link": len(links) if source else None})
        nodes.append(
            {
                "id": numbers[name],
                "type": node["class_type"],
                "pos": _place(graph, name),
                "size": [330, 120 + 26 * len(widgets)],
                "flags": {},
                "order": numbers[name] - 1,
                "mode": 0,
                "inputs": inputs,
                "outputs": [{"name": n, "type": t, "links": []} for n, t in outputs.items()],
                "properties": {"Node name for S&R": node["class_type"]},
                "widgets_values": [_widget(node, widget) for widget in widgets],
            }
        )
    for link, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"].append(link)
    return {
        "last_node_id": len(nodes) + 1,
        "last_link_id": len(links),
        "nodes": [*nodes, _note(len(nodes) + 1, _about(graph))],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _load(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "weights": "tiny",
        "dtype": "bf16",
        "quantize": "as_trained",
        "trainer_version": "auto",
        "offload": "auto",
        "quantize_te": "as quantize",
        "layer_offloading": False,
        "low_vram": "auto",
    }


def _lora(multiplier: float, pair: bool = False) -> dict[str, Any]:
    return {
        "lora_name": "tiny",
        "multiplier": multiplier,
        "lora_name_low": "tiny" if pair else "none",
        "mode": "as_trainer",
        "allow_partial": False,
        "url": "",
        "role": "trained",
    }


def _sample() -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "steps": 8,
        "guidance_scale": -1.0,
        "seed": 42,
        "num_frames": 0,
        "fps": 0,
        "trigger_word": "sks",
        "sampler": "default",
        "cached_text": False,
        "control_index": 0,
        "doubled_control": False,
        "denoise": 1.0,
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _widget(node: Mapping[str, Any], name: str) -> Any:
    return "fixed" if name == "control_after_generate" else node["inputs"][name]


def _place(graph: Mapping[str, Any], name: str) -> list[int]:
    column = _depth(graph, name)
    above = [other for other in graph if other < name and _depth(graph, other) == column]
    return [40 + 380 * column, 60 + 470 * len(above)]


def _depth(graph: Mapping[str, Any], name: str) -> int:
    sources = [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return 1 + max((_depth(graph, source) for source in sources), default=-1)


def _about(graph: Mapping[str, Any]) -> str:
    models = [node["inputs"].get("model") for node in graph.values()]
    network = any(get_model(model).network for model in models if isinstance(model, str))
    return NOTE + (NEEDS_TRAINER if network else "")


def _note(number: int, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [40, -170],
        "size": [520, 180],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


def _draw(graph: Mapping[str, Any], file: Path) -> None:
    try:
        write_thumbnail(graph, file)
    except MissingDependencyError as error:  # the trainer's own network
        sys.stdout.write(f"{file.name} was not drawn: {error}\n")


def main() -> int:
    stale = []
    for name, graph in workflows():
        picture_file = FOLDER / f"{name}.jpg"
        if "--thumbnails" in sys.argv or not good_thumbnail(picture_file):
            stale.append(picture_file.name)
            if "--check" not in sys.argv:
                _draw(graph, picture_file)
        for path, content in (
            (FOLDER / "api" / f"{name}.json", graph),
            (FOLDER / f"{name}.json", editor_format(graph)),
        ):
            text = json.dumps(content, indent=2) + "\n"
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for name in stale:
        sys.stdout.write(f"{'stale' if '--check' in sys.argv else 'written'}: {name}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
