"""Small pictures of what a workflow draws, for ComfyUI's list of templates."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from example_graphs import Example

from ai_toolkit_inference import Engine, SampleRequest
from ai_toolkit_inference.core.requests import AdapterRef, Recipe
from ai_toolkit_inference.jobs.compare import load_pair, side_by_side
from ai_toolkit_inference.jobs.job import LATEST, Job, read_job
from ai_toolkit_inference.jobs.render import Rendered, as_trained, planned, render

SIDE = 256  # px
STRIP = 40  # px
MOST_BYTES = 10_000
QUALITIES = range(85, 4, -5)
EXAMPLE = (256, 192)  # px, of what stands for a picture of the user's
SAMPLE_INPUTS = (
    "prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed",
    "trigger_word", "num_frames", "control_index", "denoise",
)  # fmt: skip


def good_thumbnail(file: Path) -> bool:
    """Whether a thumbnail is there and small."""
    return file.is_file() and 0 < file.stat().st_size <= MOST_BYTES


def write_thumbnail(example: Example, file: Path) -> None:
    """Draws a workflow on the CPU, and saves what its last node is given.

    Over its title, since toys draw noise.
    """
    drawn: dict[str, Any] = {}
    engine = Engine("cpu")
    for name, node in example.graph.items():
        given = {
            key: drawn[value[0]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        drawn[name] = _run(node["class_type"], given, engine)
    _write(_tile(drawn[list(example.graph)[-1]]), example.title, file)


def write_index_thumbnail(pictures: Sequence[Path], file: Path) -> None:
    """Lays four thumbnails together, without what is written on them."""
    import numpy as np
    from PIL import Image

    opened = [Image.open(picture).convert("RGB") for picture in pictures]
    side = SIDE - STRIP
    _write(_tile([np.asarray(one)[:side, :side] for one in opened]), "All examples", file)


def _write(picture: Any, title: str, file: Path) -> None:
    _label(picture, title)
    file.write_bytes(_jpeg(picture))


def _run(class_type: str, given: Mapping[str, Any], engine: Engine) -> Any:
    # a node's first output, of a job the job; frames as a list of uint8 (H, W, 3)
    if class_type == "LoadAIToolkitModel":
        return Recipe(given["model"], weights=given["weights"], dtype=given["dtype"])
    if class_type == "ApplyAIToolkitLoRA":
        low = given["lora_name_low"].replace("none", "")
        adapter = AdapterRef(given["lora_name"], given["multiplier"], low)
        return given["model"].with_adapter(adapter, given["mode"])
    if class_type == "AIToolkitSample":
        return _sample(given, engine)
    if class_type == "AIToolkitEncode":
        return engine.encode(given["model"], given["image"][0])
    if class_type == "LoadAIToolkitJob":
        return read_job(given["job"])
    if class_type == "AIToolkitRenderSamples":
        return [one.result.frames[0] for one in _draw_again(given["samples"], engine)]
    if class_type == "AIToolkitCompareSamples":
        return list(_compared(given["job"], engine))
    if class_type == "LoadImage":
        return [_example()]
    if class_type == "ImageScale":
        return [_scaled(image, given["width"], given["height"]) for image in given["image"]]
    if class_type == "ImageBatch":
        return given["image1"] + given["image2"]
    return given["images"]


def _sample(given: Mapping[str, Any], engine: Engine) -> list[Any]:
    inputs = {name: given[name] for name in SAMPLE_INPUTS}
    inputs["control_images"] = tuple(given.get("control_image_1", ()))
    inputs["latents"] = given.get("latent")
    return list(engine.sample(SampleRequest(given["model"], **inputs)).frames)


def _draw_again(job: Job, engine: Engine) -> Iterator[Rendered]:
    return render(engine, planned(job, as_trained(job, job.find_step(LATEST))))


def _compared(job: Job, engine: Engine) -> Iterator[Any]:
    files = job.samples_of(job.find_step(LATEST)).files
    for one in _draw_again(job, engine):
        yield side_by_side(load_pair(one.result, files[one.sample.index]))


def _scaled(image: Any, width: int, height: int) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    return ImageOps.fit(Image.fromarray(np.asarray(image)), (width, height))


def _example() -> Any:
    # a coloured sky over a dark ground
    import numpy as np
    from PIL import Image

    width, height = EXAMPLE
    down, right = np.mgrid[0:height, 0:width]
    sky = np.stack([right * 255 // width, down * 255 // height, 255 - right * 128 // width], 2)
    return Image.fromarray(np.where(down[..., None] < height * 2 // 3, sky, 40).astype(np.uint8))


def _tile(frames: Sequence[Any]) -> Any:
    # one picture: the first frame, four in two rows, or up to three that are wide
    from PIL import Image, ImageOps

    wide = frames[0].shape[1] > 2 * frames[0].shape[0]
    columns, rows = (1, 3) if wide else (2, 2) if len(frames) >= 4 else (1, 1)
    width, height = SIDE // columns, SIDE // rows
    fill = ImageOps.pad if wide else ImageOps.fit
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, frame in enumerate(frames[: columns * rows]):
        small = fill(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * width, index // columns * height))
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
