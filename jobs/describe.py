"""A job, told to people and to programs."""

from __future__ import annotations

from typing import Any

from ..core.quantizing import qtypes_of_job
from .base_loras import FIELDS
from .job import Job


def summary(job: Job) -> dict[str, Any]:
    """The job, JSON-ready."""
    return {
        "name": job.name,
        "process": job.process,
        "processes": job.processes,
        "model": job.spec.id,
        "base": job.section.get("name_or_path"),
        "dtype": job.dtype,
        "mode": "live" if job.live else "merged",
        **quantization(job),
        "averaged": job.averaged,
        "base_loras": {field: job.section[field] for field in FIELDS if job.section.get(field)},
        "trigger_word": job.trigger_word,
        "cached_text": job.cached_text,
        "format": job.format,
        "checkpoints": [
            {"step": c.step, "final": c.final, "files": [file.name for file in c.files]}
            for c in job.checkpoints
        ],
        "sample_steps": sorted({group.step for group in job.sample_sets}),
        "samples": [
            {
                "index": sample.index,
                "prompt": sample.prompt,
                "multiplier": sample.multiplier,
                "control_images": list(sample.controls),
                **sample.settings,
            }
            for sample in job.samples
        ],
        "not_reproduced": [str(problem) for problem in job.problems if problem.pixels],
        "unknown": [str(problem) for problem in job.problems if not problem.pixels],
    }


def quantization(job: Job) -> dict[str, Any]:
    """How the job's base is held."""
    quantize, encoders = qtypes_of_job(job.section, job.spec)
    return {"quantize": quantize, "quantize_te": encoders}


def _which_process(job: Job) -> list[str]:
    if job.processes == 1:
        return []
    return [f"process   {job.process} of 0 to {job.processes - 1}; --process chooses another"]


def describe(job: Job) -> str:
    """The job in a few lines."""
    facts = summary(job)
    steps = [
        ("unknown" if c.step is None else str(c.step)) + " (final)" * c.final
        for c in job.checkpoints
    ]
    way = "beside the layers" if job.live else "merged into the weights"
    lines = [
        f"{job.name}: {job.spec.title} ({job.spec.id}), {job.dtype}, LoRA {way}",
        *_which_process(job),
        f"base      {facts['base']}",
        *(f"          with {path} ({field})" for field, path in facts["base_loras"].items()),
        f"quantized {facts['quantize']}, text encoder {facts['quantize_te']}",
        f"trigger   {job.trigger_word or 'none'}"
        + (" (prompts were encoded before training)" if job.cached_text else ""),
        f"weights   of steps {', '.join(steps) or 'none'}"
        + (", averaged (EMA), as those that its samples show" if job.averaged else ""),
        f"samples   of steps {', '.join(map(str, facts['sample_steps'])) or 'none'}, {job.format}",
    ]
    for sample in job.samples:
        given = sample.settings
        lines.append(
            f"  {sample.index}: {sample.prompt!r}  {given['width']}x{given['height']}  "
            f"{given['steps']} steps  guidance {given['guidance_scale']:g}  seed {given['seed']}"
            + (f"  multiplier {sample.multiplier:g}" if sample.multiplier != 1 else "")
            + (f"  with {', '.join(sample.controls)}" if sample.controls else "")
        )
    lines += [f"not reproduced: {text}" for text in facts["not_reproduced"]]
    lines += [f"not known: {text}" for text in facts["unknown"]]
    return "\n".join(lines)
