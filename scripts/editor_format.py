"""Graphs in API format as ComfyUI's editor saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
            "switches",
        ],
        {"images": "IMAGE", "audio": "AUDIO", "fps": "FLOAT", "info": "STRING"},
    ),
    "LoadAIToolkitJob": (
        {},
        ["job", "step", "weights", "anyway"],
        {
            "model": "AITK_MODEL",
            "samples": "AITK_SAMPLES",
            "job": "AITK_JOB",
            "report": "STRING",
        },
    ),
    "AIToolkitRenderSamples": (
        {"model": "AITK_MODEL", "samples": "AITK_SAMPLES"},
        ["only"],
        {"images": "IMAGE", "info": "STRING"},
    ),
    "AIToolkitCompareSamples": (
        {"job": "AITK_JOB", "images": "IMAGE"},
        ["only"],
        {"verdict": "STRING", "heatmap": "IMAGE", "side_by_side": "IMAGE"},
    ),
    "AIToolkitEncode": ({"model": "AITK_MODEL", "image": "IMAGE"}, [], {"latent": "LATENT"}),
    "LoadImage": ({}, ["image"], {"IMAGE": "IMAGE", "MASK": "MASK"}),
    "ImageBatch": ({"image1": "IMAGE", "image2": "IMAGE"}, [], {"IMAGE": "IMAGE"}),
    "ImageScale": (
        {"image": "IMAGE"},
        ["upscale_method", "width", "height", "crop"],
        {"IMAGE": "IMAGE"},
    ),
    "SaveImage": ({"images": "IMAGE"}, ["filename_prefix"], {}),
    "AIToolkitSaveVideo": (
        {"images": "IMAGE", "audio": "AUDIO"},
        ["fps", "filename_prefix", "format", "crf"],
        {"video": "VIDEO"},
    ),
}  # fmt: skip


def editor_format(
    graph: Mapping[str, Any], notes: Sequence[str], note_width: int = 520
) -> dict[str, Any]:
    """The graph, API format, as ComfyUI's editor saves it: in columns, with notes above."""
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
    for column, text in enumerate(notes):
        nodes.append(_note(len(nodes) + 1, column, note_width, text))
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _widget(node: Mapping[str, Any], name: str) -> Any:
    return "fixed" if name == "control_after_generate" else node["inputs"][name]


def _place(graph: Mapping[str, Any], name: str) -> list[int]:
    column = _depth(graph, name)
    above = [other for other in graph if other < name and _depth(graph, other) == column]
    return [40 + 380 * column, 60 + 470 * len(above)]


def _depth(graph: Mapping[str, Any], name: str) -> int:
    sources = [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return 1 + max((_depth(graph, source) for source in sources), default=-1)


def _note(number: int, column: int, width: int, text: str) -> dict[str, Any]:
    height = max(180, 60 + 22 * text.count("\n"))
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [40 + (width + 40) * column, 10 - height],
        "size": [width, height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }
