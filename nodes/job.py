"""The nodes around a training job: load it, draw its samples again, compare them with its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..core.errors import AitkError, InvalidInputError
from ..core.requests import Recipe
from . import _comfy, _memory
from ._errors import as_listed, plain_errors

AS_TRAINED = "as trained"
JOB_TOOLTIP = (
    "A folder in models/aitk_jobs. tiny is a small job that was really trained, on the tiny "
    "weights, for trying a workflow."
)


@dataclass(frozen=True)
class LoadedJob:
    """A job at one of its steps. `job` is a jobs.job.Job."""

    job: Any
    step: int
    recipe: Recipe


class LoadAIToolkitJob:
    """A training job's folder: the model as trained, with the weights of one step."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Opens the folder that ostris/ai-toolkit wrote for a training job (put it into ComfyUI's "
        "models/aitk_jobs): base model, LoRA of a step, and the settings of every sample."
    )
    RETURN_TYPES = ("AITK_MODEL", "AITK_SAMPLES", "AITK_JOB", "STRING")
    RETURN_NAMES = ("model", "samples", "job", "report")
    OUTPUT_TOOLTIPS = (
        "The recipe as trained, with the step's LoRA.",
        "The settings of the job's samples.",
        "The job, for comparing.",
        "What the folder holds, and what of it is not reproduced.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "job": (_comfy.list_jobs(), {"tooltip": JOB_TOOLTIP}),
                "step": (
                    ["latest", *_comfy.list_job_steps()],
                    {
                        "tooltip": "The training step; 0 is before training. The list shows the "
                        "steps of all jobs."
                    },
                ),
            },
            "optional": {
                "weights": (
                    [AS_TRAINED, *_comfy.list_weights()],
                    {"tooltip": "The base model, if it is not where the job had it."},
                ),
                "anyway": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Also if some of the job's settings are not reproduced; the "
                        "report names them.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, job: str, step: str) -> bool | str:
        try:
            if job not in _comfy.list_jobs():
                return f"no job {job!r} in the aitk_jobs folder; refresh and choose again"
            from ..jobs.job import read_job

            read_job(_comfy.find_job(job)).find_step(step)
        except AitkError as error:
            return as_listed(str(error))
        return True

    @classmethod
    def IS_CHANGED(cls, job: str, step: str, **_: Any) -> tuple[Any, ...]:
        # a training that goes on adds files
        folder = _comfy.find_job(job)
        files = [folder, folder / "samples", *sorted(folder.glob("*.*"))]
        return (step, *(file.stat().st_mtime_ns for file in files if file.exists()))

    @plain_errors()
    def load(
        self, job: str, step: str, weights: str = AS_TRAINED, anyway: bool = False
    ) -> tuple[Recipe, LoadedJob, LoadedJob, str]:
        from ..jobs.describe import describe
        from ..jobs.job import read_job
        from ..jobs.render import as_trained

        found = read_job(_comfy.find_job(job))
        number = found.find_step(step)
        base = "" if weights == AS_TRAINED else _comfy.find_weights(weights)
        recipe = _memory.keep_while_used(_comfy.engine(), as_trained(found, number, base, anyway))
        if weights == AS_TRAINED:
            _comfy.check_inside(recipe.weights)
        loaded = LoadedJob(found, number, recipe)
        return recipe, loaded, loaded, describe(found)


class AIToolkitRenderSamples:
    """A job's sample sheet, drawn again."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Draws the samples of a training job again: its prompts, seeds, sizes, multipliers. One "
        "image, or clip, for each."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "info")
    OUTPUT_IS_LIST = (True, False)
    OUTPUT_TOOLTIPS = (
        "The samples, in the job's order; each may have its own size.",
        "JSON: everything that decided each of them.",
    )
    FUNCTION = "render"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("AITK_MODEL", {"tooltip": "The job's model, or another to try on it."}),
                "samples": ("AITK_SAMPLES", {"tooltip": "Of Load AI Toolkit Job."}),
            },
            "optional": {"only": _only_input()},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @plain_errors()
    def render(
        self, model: Recipe, samples: LoadedJob, only: str = "", unique_id: str = ""
    ) -> tuple[list[Any], str]:
        from ..jobs.render import planned, render

        folder = _comfy.input_folder()
        requests = planned(samples.job, model, read_numbers(only), folder)
        engine = _comfy.engine()
        images, infos = [], []
        status = _comfy.status_reporter(unique_id)
        with _memory.room_for(engine, model):
            for drawn in render(
                engine,
                requests,
                on_sample=lambda done, total: status(f"{done} of {total} samples"),
                on_step=_comfy.step_reporter(unique_id),
                on_status=status,
                previews=True,
            ):
                images.append(_comfy.frames_to_image(drawn.result.frames))
                infos.append({"index": drawn.sample.index} | drawn.result.info)
        return images, json.dumps(infos, indent=2)


class AIToolkitCompareSamples:
    """Whether rendered samples are the trainer's own."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Compares rendered samples with the pictures in the job's samples folder: identical, "
        "within what saving the weights rounded off, or drifted, and why."
    )
    RETURN_TYPES = ("STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("verdict", "heatmap", "side_by_side")
    OUTPUT_IS_LIST = (False, True, True)
    OUTPUT_TOOLTIPS = (
        "JSON: a verdict for each sample, with numbers and likely causes.",
        "Where each differs: black is equal.",
        "The trainer's, this one, and where they differ.",
    )
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "job": ("AITK_JOB", {"tooltip": "Of Load AI Toolkit Job."}),
                "images": ("IMAGE", {"tooltip": "Of AI Toolkit Render Samples."}),
            },
            "optional": {"only": _only_input()},
        }

    @plain_errors()
    def compare(
        self, job: list[LoadedJob], images: list[Any], only: list[str] | None = None
    ) -> Any:
        from ..core.results import SampleResult
        from ..jobs.compare import heatmap, side_by_side
        from ..jobs.render import Rendered, planned
        from ..jobs.verdict import judge, summary

        (loaded,) = job
        against = loaded.job.samples_of(loaded.step)
        numbers = read_numbers(only[0] if only else "")
        requests = planned(loaded.job, loaded.recipe, numbers, _comfy.input_folder())
        if len(images) != len(requests):
            raise InvalidInputError(
                f"{len(images)} images for {len(requests)} samples of the job; connect the images "
                "of AI Toolkit Render Samples, and give the same `only` to both"
            )
        verdicts = []
        for (sample, request), image in zip(requests, images, strict=True):
            if sample.index in against.files:
                frames = _comfy.image_to_array(image)
                result = SampleResult(frames, float(request.fps or 1), {})
                drawn = Rendered(sample, request, result)
                verdicts.append(judge(_comfy.engine(), loaded.job, drawn, against))
        if not verdicts:
            raise InvalidInputError(f"the job has none of these samples at step {loaded.step}")
        text = json.dumps(summary(verdicts), indent=2)
        heat = [_comfy.frames_to_image(heatmap(v.pair)[None]) for v in verdicts]
        sides = [_comfy.frames_to_image(side_by_side(v.pair)[None]) for v in verdicts]
        shown = {"text": [text], "aitk_samples": _comparable(verdicts)}
        return {"ui": shown, "result": (text, heat, sides)}


def _comparable(verdicts: list[Any]) -> list[dict[str, Any]]:
    """What the page's slider shows of each sample: one frame, as files in ComfyUI's temp."""
    from ..jobs.compare import heatmap

    return [
        {
            "index": verdict.index,
            "verdict": verdict.verdict,
            "trainer": _comfy.temporary_picture(verdict.pair.theirs[verdict.pair.shown]),
            "rendered": _comfy.temporary_picture(verdict.pair.ours[verdict.pair.shown]),
            "heatmap": _comfy.temporary_picture(heatmap(verdict.pair)),
        }
        for verdict in verdicts
    ]


def read_numbers(text: str) -> tuple[int, ...]:
    """`0, 2` as numbers; nothing means all. Raises InvalidInputError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InvalidInputError(f"only={text!r}; write numbers with commas between, as 0, 2")
    return tuple(map(int, parts))


def _only_input() -> Any:
    return (
        "STRING",
        {"default": "", "tooltip": "Numbers of samples with commas between; empty for all."},
    )
