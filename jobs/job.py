"""A job folder as data: its model, the settings of every sample, its weights and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.prompts import parse_flags, replace_trigger
from ..core.quantizing import qtypes_of_job
from ..core.requests import AdapterRef, Recipe, SampleRequest
from ..core.specs import ModelSpec
from .base_loras import base_lora_problems, base_loras_of
from .config import config_file, processes, read_config
from .fields import Problem, problems_of
from .folder import (
    Checkpoint,
    SampleSet,
    choose_checkpoint,
    find_checkpoints,
    find_samples,
    job_folder,
)
from .model_kwargs import model_kwargs_problems, switches_of
from .models import model_of, weights_of

DTYPES = {
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "fp32": "fp32",
    "float32": "fp32", "float": "fp32",
}  # fmt: skip
LATEST = "latest"
# the trainer's own defaults of a sample section
SAMPLE_DEFAULTS: dict[str, Any] = {
    "sampler": "ddpm", "width": 512, "height": 512, "neg": False, "seed": 0, "walk_seed": False,
    "guidance_scale": 7, "sample_steps": 20, "network_multiplier": 1, "guidance_rescale": 0.0,
    "format": "jpg", "num_frames": 1, "fps": 16,
}  # fmt: skip


@dataclass(frozen=True)
class JobSample:
    """One sample of a job's list, as the trainer sets it up before it reads inline flags.

    controls: paths on the machine that trained. doubled: the first is named by `ctrl_img`.
    """

    index: int
    prompt: str
    settings: dict[str, Any]  # fields of SampleRequest
    multiplier: float
    controls: tuple[str, ...] = ()
    doubled: bool = False


@dataclass(frozen=True)
class Job:
    """What a job folder says. recipe: the model as trained, without adapters.

    format: the ending of its sample files. averaged: the job had EMA, so that its files and its
    samples both have the averaged weights. problems: fields that are not reproduced.
    """

    folder: Path
    name: str
    spec: ModelSpec
    section: Mapping[str, Any] = field(repr=False)  # the configuration's `model`
    dtype: str
    device: str  # as configured, empty if it is not
    samples: tuple[JobSample, ...]
    format: str
    trigger_word: str
    cached_text: bool
    live: bool
    averaged: bool
    low_vram: bool
    switches: tuple[tuple[str, bool], ...]  # see SampleRequest
    checkpoints: tuple[Checkpoint, ...]
    sample_sets: tuple[SampleSet, ...]
    problems: tuple[Problem, ...]
    process: int = 0
    processes: int = 1

    def recipe(self, step: int, weights: str = "") -> Recipe:
        """The model with the adapters that samples of this step were drawn with.

        weights: where the base is, if not where the job says. Raises InvalidInputError if the
        weights of the step were not kept.
        """
        quantize, encoders = qtypes_of_job(self.section, self.spec)
        base = Recipe(
            self.spec.id,
            weights=weights or weights_of(self.section, self.spec),
            dtype=self.dtype,
            quantize=quantize,
            quantize_te=encoders,
            layer_offloading=_offloads_layers(self.section),
            mode="live" if self.live else "as_trainer",
            low_vram="on" if self.low_vram else "off",
        )
        base = replace(base, **base_loras_of(self.section, self.spec, self.folder))
        if step == 0 and not self.checkpoints:
            return base
        # before its first step a network changes nothing; the file still names the version
        checkpoint = self.checkpoints[0] if step == 0 else choose_checkpoint(self.checkpoints, step)
        path, low = (str(file) if file else "" for file in (checkpoint.path, checkpoint.low))
        return base.with_adapter(AdapterRef(path, 0.0 if step == 0 else 1.0, low), base.mode)

    def find_step(self, name: str, with_samples: bool = False) -> int:
        """The step that a number or `latest` names.

        latest is the last one whose weights are there, and with_samples its pictures as well.
        Raises InvalidInputError with those there are if the named one is not.
        """
        weights = {c.step for c in self.checkpoints if c.step is not None} | {0}
        drawn = {group.step for group in self.sample_sets}
        steps = sorted(weights & drawn if with_samples else weights)
        if name == LATEST and steps:
            return steps[-1]
        if not name.isdecimal() or int(name) not in steps:
            raise InvalidInputError(
                f"{self.name} has no step {name} with weights{' and samples' * with_samples}; "
                f"it has: {', '.join(map(str, steps)) or 'none'} (0 is before training). Of "
                "others the trainer keeps the weights of the last few (save.max_step_saves_to_keep)"
            )
        return int(name)

    def samples_of(self, step: int) -> SampleSet:
        """The last pictures drawn at a step. Raises InvalidInputError if there are none."""
        found = [group for group in self.sample_sets if group.step == step]
        if not found:
            raise InvalidInputError(f"{self.name} has no samples of step {step}")
        return found[-1]


def read_job(folder: str | Path, process: int = 0) -> Job:
    """The job in a folder that the trainer wrote, or `tiny`. process: which of several it has.

    Raises InvalidInputError for a folder without readable configuration, a model that is not
    known here, and settings that cannot be read.
    """
    file = config_file(job_folder(folder))
    config = read_config(file)
    found = processes(config)
    if not 0 <= process < len(found):
        raise InvalidInputError(
            f"the job has {len(found)} process(es), from number 0; there is no number {process}"
        )
    job = _job(file.parent, config["config"]["name"], found[process])
    return replace(job, process=process, processes=len(found))


def requests_of(job: Job, recipe: Recipe, controls: Mapping[str, Any]) -> Iterator[SampleRequest]:
    """The requests of a job's samples, in order, on a recipe that Job.recipe gave.

    controls: path in the configuration -> PIL image, of those that there are.
    """
    for sample in job.samples:
        adapters = tuple(
            replace(ref, multiplier=sample.multiplier * ref.multiplier) for ref in recipe.adapters
        )
        yield SampleRequest(
            recipe=replace(recipe, adapters=adapters),
            prompt=sample.prompt,
            trigger_word=job.trigger_word,
            cached_text=job.cached_text,
            control_images=tuple(controls[path] for path in sample.controls if path in controls),
            doubled_control=sample.doubled and job.spec.control_images.doubled,
            switches=job.switches,
            **sample.settings,
        )


def _job(folder: Path, name: str, process: dict[str, Any]) -> Job:
    model, train = process.get("model") or {}, process.get("train") or {}
    spec = model_of(model)
    trigger = str(process.get("trigger_word") or "")
    samples = tuple(_samples(spec, process.get("sample") or {}))
    quantized = bool(model.get("quantize")) or _offloads_layers(model)
    return Job(
        folder=folder,
        name=name,
        spec=spec,
        section=model,
        dtype=_dtype(train.get("dtype", "fp32")),
        device=str(process.get("device") or ""),
        samples=samples,
        format=_format(process.get("sample") or {}),
        trigger_word=trigger,
        cached_text=_is_cached(process, train),
        live=quantized or len(set(_multipliers(samples, trigger))) > 1,
        averaged=bool((train.get("ema_config") or {}).get("use_ema")),
        low_vram=bool(model.get("low_vram")),
        switches=switches_of(process, spec),
        checkpoints=find_checkpoints(folder, name),
        sample_sets=find_samples(folder),
        problems=(
            *problems_of(process, spec.arch),
            *model_kwargs_problems(process, spec),
            *base_lora_problems(model, spec, folder),
        ),
    )


def _samples(spec: ModelSpec, section: Mapping[str, Any]) -> Iterator[JobSample]:
    # Upstream: ostris/ai-toolkit@27a03a91 jobs/process/BaseSDTrainProcess.py::sample
    defaults = SAMPLE_DEFAULTS | {k: v for k, v in section.items() if k in SAMPLE_DEFAULTS}
    items = section.get("samples") or [{"prompt": text} for text in section.get("prompts") or []]
    prompts = [item.get("prompt") for item in items if item.get("prompt") is not None]
    seed = defaults["seed"]
    # an item without a prompt takes no turn, but its settings keep their place
    for index, (prompt, item) in enumerate(zip(prompts, items, strict=False)):
        if defaults["walk_seed"]:
            seed = defaults["seed"] + index
        if item.get("seed") is not None:
            seed = item["seed"]  # it stays for those after it
        yield _sample(spec, index, str(prompt), defaults | item, seed)


def _sample(
    spec: ModelSpec, index: int, prompt: str, item: Mapping[str, Any], seed: int
) -> JobSample:
    where = f"sample {index}"
    if seed == -1:
        raise InvalidInputError(f"{where} has seed -1, which the trainer drew at random; give one")
    if item["neg"] is False:
        raise InvalidInputError(f"{where} has no `neg`, which the trainer itself fails on")
    # models that take one picture read no other key
    several = item.get("ctrl_img_1") if spec.control_images.most > 1 else None
    first = item.get("ctrl_img") or several
    controls = (first, item.get("ctrl_img_2"), item.get("ctrl_img_3"))
    sampler = str(item["sampler"])
    settings = {
        "negative_prompt": str(item["neg"]),
        "width": int(item["width"]),
        "height": int(item["height"]),
        "steps": int(item["sample_steps"]),
        "guidance_scale": float(item["guidance_scale"]),
        "guidance_rescale": float(item["guidance_rescale"]),
        "seed": int(seed),
        "num_frames": int(item["num_frames"]),
        "fps": int(item["fps"]),
        "sampler": sampler if sampler in spec.samplers else "",
        "control_index": int(item.get("ctrl_idx", 0)) if spec.control_images.index else 0,
    }
    taken = tuple(str(path) for path in controls if path)[: spec.control_images.most]
    return JobSample(
        index, prompt, settings, _multiplier(item), taken, doubled=bool(item.get("ctrl_img"))
    )


def _multiplier(item: Mapping[str, Any]) -> float:
    try:
        return float(item["network_multiplier"])
    except (TypeError, ValueError):
        return 1.0  # as the trainer takes a text that is no number


def _multipliers(samples: tuple[JobSample, ...], trigger: str) -> Iterator[float]:
    for sample in samples:
        _, flags = parse_flags(replace_trigger(sample.prompt, trigger))
        yield flags.get("multiplier", sample.multiplier)


def _format(section: Mapping[str, Any]) -> str:
    ending = str(section.get("format", SAMPLE_DEFAULTS["format"]))
    frames = section.get("num_frames", 1)
    return "webp" if frames > 1 else ending


def _offloads_layers(section: Mapping[str, Any]) -> bool:
    return bool(section.get("layer_offloading", section.get("auto_memory")))


def _dtype(name: object) -> str:
    if str(name) not in DTYPES:
        raise InvalidInputError(f"train.dtype is {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES[str(name)]


def _is_cached(process: Mapping[str, Any], train: Mapping[str, Any]) -> bool:
    datasets = process.get("datasets") or []
    return bool(
        train.get("unload_text_encoder")
        or train.get("cache_text_embeddings")
        or any(data.get("cache_text_embeddings") for data in datasets)
    )
