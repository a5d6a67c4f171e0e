"""The graphs of the example workflows, in API format, made from the models' specs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ai_toolkit_inference import list_models
from ai_toolkit_inference.core.specs import ModelSpec

PROMPT = "a photo of [trigger] cat on the beach, soft light"
CONTROL_IMAGE = "example.png"  # ComfyUI brings it
VIDEO_SETTINGS = {"width": 128, "height": 128, "steps": 4, "num_frames": 9}
SWEEP = (0.0, 0.5, 1.0, 1.5)
SMALL, LARGE = 192, 320  # px, of two passes
NOTE = (
    "Runs as it is, with tiny random weights. For real pictures choose `huggingface` or a folder "
    "as weights and your own file as lora_name, and write your trigger word.\n\n"
    "Small and quick, to begin with: set width, height and steps to 0 for the trainer's own "
    "(-1 for guidance)."
)
LATENT_NOTE = (
    "\n\n**denoise** says how much is drawn anew: near 0 the picture stays, 1 draws another. "
    "The trainer has no such thing, so nothing is promised about these pixels."
)
JOB_NOTE = (
    "Runs as it is, with a small job that was really trained, on tiny random weights. For your own "
    "put the folder that the trainer wrote into `models/aitk_jobs` and choose it as **job**; if "
    "its base model is not where the job had it, say where with **weights**."
)
NEEDS_TRAINER = (
    "\n\nThis model's network is the trainer's own code: run `python install.py` in the pack's "
    "folder first."
)
PICTURES, EDITING, CLIPS = "Pictures", "Pictures from pictures", "Clips"
LORAS, PASSES, JOBS = "Several LoRAs", "Latents", "Training jobs"


@dataclass(frozen=True)
class Example:
    """A workflow, with what is told of it. graph: API format."""

    name: str
    group: str
    title: str
    about: str
    graph: dict[str, Any]
    note: str = NOTE


def examples() -> Iterator[Example]:
    """All of them, those of the models first."""
    for spec in list_models():
        yield from _of_model(spec)
    yield from _of_loras()
    yield from _of_latents()
    yield from _of_jobs()


def _of_model(spec: ModelSpec) -> Iterator[Example]:
    taken, note = spec.control_images, NOTE + (NEEDS_TRAINER if spec.network else "")
    always = bool(taken.required) or spec.task == "edit"
    clip = spec.task == "video"
    sound = " with sound" if "audio_vae" in spec.components else ""
    drawn = f"A clip{sound}" if clip else "A picture"
    group = CLIPS if clip else EDITING if always else PICTURES
    loras = "LoRAs of both experts" if spec.lora.experts else "a LoRA"
    start = "from a picture, " if always else ""
    yield Example(
        f"{spec.id}_lora",
        group,
        spec.title,
        f"{drawn} of {spec.title} {start}with {loras}.",
        picture(spec, control=always),
        note,
    )
    if taken.most and not always:
        yield Example(
            f"{spec.id}_edit",
            CLIPS if clip else EDITING,
            f"{spec.title}, from a picture",
            f"{drawn} of {spec.title} from a picture, with {loras}.",
            picture(spec, control=True),
            note,
        )


def _of_loras() -> Iterator[Example]:
    yield Example(
        "lora_strength_clip",
        LORAS,
        "LoRA strength as a clip",
        "One sample at rising multipliers, as frames of a clip.",
        strength_clip("sd15"),
    )
    yield Example(
        "lora_stack",
        LORAS,
        "Two LoRAs",
        "Two LoRAs on one model, with multipliers of their own.",
        stack("flux"),
    )


def _of_latents() -> Iterator[Example]:
    yield Example(
        "two_pass",
        PASSES,
        "Two passes",
        "A small picture, enlarged and drawn over for its details.",
        two_pass("sd15"),
        NOTE + LATENT_NOTE,
    )
    yield Example(
        "image_to_image",
        PASSES,
        "Image to image",
        "A picture of yours, drawn over with a LoRA.",
        image_to_image("sd15"),
        NOTE + LATENT_NOTE,
    )


def _of_jobs() -> Iterator[Example]:
    yield Example(
        "job_samples",
        JOBS,
        "A job's samples",
        "The samples of a training job, drawn again.",
        job_samples(),
        JOB_NOTE,
    )
    yield Example(
        "job_compare",
        JOBS,
        "A job's samples, compared",
        "The samples of a training job, drawn again and laid over the trainer's.",
        job_compare(),
        JOB_NOTE,
    )


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


def two_pass(model: str) -> dict[str, Any]:
    """A sample, enlarged, and sampled again from its latent; API format."""
    small = {"width": SMALL, "height": SMALL}
    large = {"upscale_method": "lanczos", "width": LARGE, "height": LARGE, "crop": "disabled"}
    return {
        "1": _node("LoadAIToolkitModel", **_load(model)),
        "2": _node("ApplyAIToolkitLoRA", model=["1", 0], **_lora(1.0)),
        "3": _node("AIToolkitSample", model=["2", 0], **_sample() | small),
        "4": _node("ImageScale", image=["3", 0], **large),
        "5": _node("AIToolkitEncode", model=["2", 0], image=["4", 0]),
        "6": _node("AIToolkitSample", model=["2", 0], latent=["5", 0], **_second(0.5)),
        "7": _node("SaveImage", images=["6", 0], filename_prefix="aitk/two_pass"),
    }


def image_to_image(model: str) -> dict[str, Any]:
    """A picture, brought to a size, and sampled from its latent; API format."""
    size = {"upscale_method": "lanczos", "width": 256, "height": 256, "crop": "center"}
    return {
        "1": _node("LoadAIToolkitModel", **_load(model)),
        "2": _node("ApplyAIToolkitLoRA", model=["1", 0], **_lora(1.0)),
        "3": _node("LoadImage", image=CONTROL_IMAGE),
        "4": _node("ImageScale", image=["3", 0], **size),
        "5": _node("AIToolkitEncode", model=["2", 0], image=["4", 0]),
        "6": _node("AIToolkitSample", model=["2", 0], latent=["5", 0], **_second(0.6)),
        "7": _node("SaveImage", images=["6", 0], filename_prefix="aitk/image_to_image"),
    }


def job_samples() -> dict[str, Any]:
    """The samples of a training job, drawn again; API format."""
    job = {"job": "tiny", "step": "latest", "weights": "as trained", "anyway": False}
    return {
        "1": _node("LoadAIToolkitJob", **job),
        "2": _node("AIToolkitRenderSamples", model=["1", 0], samples=["1", 1], only=""),
        "3": _node("SaveImage", images=["2", 0], filename_prefix="aitk/job_samples"),
    }


def job_compare() -> dict[str, Any]:
    """The samples of a training job, drawn again, beside the trainer's; API format."""
    return {
        **{name: node for name, node in job_samples().items() if name != "3"},
        "3": _node("AIToolkitCompareSamples", job=["1", 2], images=["2", 0], only=""),
        "4": _node("SaveImage", images=["3", 2], filename_prefix="aitk/job_compare"),
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
        "switches": "",
    }


def _second(denoise: float) -> dict[str, Any]:
    # its size is the latent's
    return _sample() | {"width": 0, "height": 0, "denoise": denoise}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
