"""Small pictures of what a workflow draws, for ComfyUI's list of templates."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ai_toolkit_inference import Engine, SampleRequest, get_model
from ai_toolkit_inference.core.requests import AdapterRef, Recipe

SIDE = 256  # px
STRIP = 40  # px
MOST_BYTES = 10_000
QUALITIES = range(85, 4, -5)
EXAMPLE = (256, 192)  # px, of what stands for a picture of the user's
SAMPLE_INPUTS = (
    "prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed",
    "trigger_word", "num_frames", "control_index",
)  # fmt: skip


def good_thumbnail(file: Path) -> bool:
    """Whether a thumbnail is there and small."""
    return file.is_file() and 0 < file.stat().st_size <= MOST_BYTES


def write_thumbnail(graph: Mapping[str, Any], file: Path) -> None:
    """Draws a workflow, API format, on the CPU, and saves what its last node is given.

    Over the model's title, since toys draw noise.
    """
    drawn: dict[str, Any] = {}
    engine = Engine("cpu")
    for name, node in graph.items():
        given = {
            key: drawn[value[0]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        drawn[name] = _run(node["class_type"], given, engine)
    picture = _tile(drawn[list(graph)[-1]])
    model = next(node["inputs"]["model"] for node in graph.values())
    _label(picture, get_model(model).title)
    file.write_bytes(_jpeg(picture))


def _run(class_type: str, given: Mapping[str, Any], engine: Engine) -> Any:
    # a node's first output; frames as a list of uint8 (H, W, 3)
    if class_type == "LoadAIToolkitModel":
        return Recipe(given["model"], weights=given["weights"], dtype=given["dtype"])
    if class_type == "ApplyAIToolkitLoRA":
        low = given["lora_name_low"].replace("none", "")
        adapter = AdapterRef(given["lora_name"], given["multiplier"], low)
        return given["model"].with_adapter(adapter, given["mode"])
    if class_type == "AIToolkitSample":
        inputs = {name: given[name] for name in SAMPLE_INPUTS}
        inputs["control_images"] = tuple(given.get("control_image_1", ()))
        return list(engine.sample(SampleRequest(given["model"], **inputs)).frames)
    if class_type == "LoadImage":
        return [_example()]
    if class_type == "ImageBatch":
        return given["image1"] + given["image2"]
    return given["images"]


def _example() -> Any:
    # a coloured sky over a dark ground
    import numpy as np
    from PIL import Image

    width, height = EXAMPLE
    down, right = np.mgrid[0:height, 0:width]
    sky = np.stack([right * 255 // width, down * 255 // height, 255 - right * 128 // width], 2)
    return Image.fromarray(np.where(down[..., None] < height * 2 // 3, sky, 40).astype(np.uint8))


def _tile(frames: Sequence[Any]) -> Any:
    # one picture: the first frame, or four in two rows
    from PIL import Image

    columns = 2 if len(frames) >= 4 else 1
    side = SIDE // columns
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, frame in enumerate(frames[: columns**2]):
        small = Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * side, index // columns * side))
    return sheet


def _label(picture: Any, text: str) -> None:
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(picture)
    size = 26
    while draw.textlength(text, ImageFont.load_default(size)) > SIDE - 16:
        size -= 1
    draw.rectangle((0, SIDE - STRIP, SIDE, SIDE), fill="black")
    centre = (SIDE // 2, SIDE - STRIP // 2)
    draw.text(centre, text, "white", ImageFont.load_default(size), anchor="mm")


def _jpeg(picture: Any) -> bytes:
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MOST_BYTES:
            return file.getvalue()
    raise ValueError(f"no JPEG quality gives {MOST_BYTES} bytes or less")
