"""Whether renderings are the trainer's samples, and if not, why, judged by what is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.read import read_metadata
from ..core.requests import AdapterRef, SampleRequest
from ..core.versions import PROFILES, trainer_version
from ..engine.engine import Engine
from .compare import Difference, Pair, compare, load_pair
from .folder import SampleSet
from .job import Job
from .render import Rendered
from .rounding import saved_dtype, write_dithered

IDENTICAL, ROUNDING, DRIFTED = "identical", "within save-rounding", "drifted"
MARGIN = 2.0  # one dithering is a sample of what rounding may do, not its bound


@dataclass(frozen=True)
class Cause:
    """A likely reason of a difference, with what it is read from. weight: 1 is sure."""

    weight: float
    text: str
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """One sample judged. rounding: what dithering the saved values did to it, if that was tried."""

    index: int
    step: int
    file: Path
    verdict: str
    difference: Difference
    pair: Pair
    rounding: Difference | None = None
    causes: tuple[Cause, ...] = ()


def judge(engine: Engine, job: Job, drawn: Rendered, against: SampleSet) -> Verdict:
    """What is to be said of one rendering beside the trainer's file of the same sample."""
    file = against.files[drawn.sample.index]
    pair = load_pair(drawn.result, file)
    difference = compare(pair)
    rounding = None
    if difference.identical:
        verdict = IDENTICAL
    else:
        rounding = _rounding(engine, drawn, file)
        within = rounding is not None and _within(difference, rounding)
        verdict = ROUNDING if within else DRIFTED
    causes: tuple[Cause, ...] = ()
    if verdict != IDENTICAL:
        causes = find_causes(engine, job, drawn, against.step, difference, rounding)
    return Verdict(
        drawn.sample.index, against.step, file, verdict, difference, pair, rounding, causes
    )


def find_causes(
    engine: Engine,
    job: Job,
    drawn: Rendered,
    step: int,
    difference: Difference,
    rounding: Difference | None,
) -> tuple[Cause, ...]:
    """Why a rendering may differ, the likeliest first."""
    looks: tuple[Callable[[], Cause | None], ...] = (
        lambda: _size(difference),
        lambda: _saved(drawn.request, rounding, difference),
        lambda: _base_drift(job, step),
        lambda: _unlike_settings(job),
        lambda: _device(engine, job),
        lambda: _version(drawn.request),
        lambda: _other_base(job, drawn.request),
    )
    found = [cause for look in looks if (cause := look()) is not None]
    return tuple(sorted(found, key=lambda cause: -cause.weight))


def _rounding(engine: Engine, drawn: Rendered, file: Path) -> Difference | None:
    # the same sample with every adapter file rounded otherwise; None if nothing was lost in saving
    refs = drawn.request.recipe.adapters
    if not any(saved_dtype(Path(name)) != "fp32" for ref in refs for name in _files(ref)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        other = tuple(
            replace(
                ref,
                path=_dithered(ref.path, Path(folder), f"{n}-high"),
                low=_dithered(ref.low, Path(folder), f"{n}-low"),
            )
            for n, ref in enumerate(refs)
        )
        recipe = replace(drawn.request.recipe, adapters=other)
        result = engine.sample(replace(drawn.request, recipe=recipe))
    moved, plain = load_pair(result, file), load_pair(drawn.result, file)
    return compare(Pair(moved.ours, plain.ours, False))


def _dithered(path: str, folder: Path, name: str) -> str:
    if not path:
        return ""
    target = folder / f"{name}.safetensors"
    write_dithered(Path(path), target)
    return str(target)


def _within(difference: Difference, rounding: Difference) -> bool:
    return difference.same_size and (
        difference.most <= MARGIN * max(rounding.most, 1)
        and difference.mean <= MARGIN * rounding.mean
    )


def _files(ref: AdapterRef) -> list[str]:
    return [name for name in (ref.path, ref.low) if name]


def _size(difference: Difference) -> Cause | None:
    if difference.same_size:
        return None
    return Cause(
        1.0,
        "The configuration was changed after these samples, or a newer trainer sized them",
        "the pictures have different sizes or numbers of frames",
    )


def _saved(
    request: SampleRequest, rounding: Difference | None, difference: Difference
) -> Cause | None:
    if rounding is None:
        return None
    kinds = {saved_dtype(Path(n)) for ref in request.recipe.adapters for n in _files(ref)}
    weight = 0.9 if _within(difference, rounding) else 0.4
    return Cause(
        weight,
        f"The weights were saved as {' and '.join(sorted(kinds))}; the trainer drew from fp32",
        f"rounding the file otherwise moves this picture by up to {rounding.most} levels, "
        f"{rounding.mean:.2f} on average; the difference is {difference.most}, "
        f"{difference.mean:.2f}",
    )


def _base_drift(job: Job, step: int) -> Cause | None:
    before = sum(1 for other in job.sample_sets if other.step < step)
    if job.live or not before or job.dtype == "fp32":
        return None
    return Cause(
        0.6,
        "The base had drifted: at every sampling the trainer merges the LoRA into it and takes it "
        "out again, which rounds the weights twice",
        f"not quantized, {job.dtype}, one multiplier for all samples, {before} sampling(s) before "
        f"step {step}",
    )


def _unlike_settings(job: Job) -> Cause | None:
    missing = [problem for problem in job.problems if problem.pixels]
    if not missing:
        return None
    return Cause(0.95, "Settings that are not reproduced", "; ".join(map(str, missing)))


def _device(engine: Engine, job: Job) -> Cause | None:
    if not job.device or job.device.partition(":")[0] == engine.device.type:
        return None
    return Cause(
        0.7,
        "The trainer drew on another device, whose kernels round otherwise",
        f"the job says {job.device}, this was drawn on {engine.device}",
    )


def _version(request: SampleRequest) -> Cause | None:
    refs = request.recipe.adapters
    found = {trainer_version(read_metadata(Path(n))) for ref in refs for n in _files(ref)}
    known = {version for version in found if version}
    pinned = {profile.version for profile in PROFILES}
    if known <= pinned and known:
        return None
    said = ", ".join(sorted(known)) or "no version"
    return Cause(
        0.3,
        "The trainer's version is none of those that were compared byte for byte",
        f"the file says {said}; compared were {', '.join(sorted(pinned))}",
    )


def _other_base(job: Job, request: SampleRequest) -> Cause | None:
    named = str(job.section.get("name_or_path") or "")
    used = request.recipe.weights
    if used == named or (used == "huggingface" and named.lower() == job.spec.repo_id.lower()):
        return None
    return Cause(0.35, "Another base model", f"the job was trained on {named!r}, this is {used!r}")


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """The verdicts, JSON-ready."""
    return {
        "identical": sum(v.verdict == IDENTICAL for v in verdicts),
        "within_save_rounding": sum(v.verdict == ROUNDING for v in verdicts),
        "drifted": sum(v.verdict == DRIFTED for v in verdicts),
        "samples": [_entry(v) for v in verdicts],
    }


def _entry(verdict: Verdict) -> dict[str, Any]:
    difference = verdict.difference
    return {
        "step": verdict.step,
        "index": verdict.index,
        "file": verdict.file.name,
        "verdict": verdict.verdict,
        "same_file": difference.same_file,
        "most": difference.most,
        "mean": round(difference.mean, 4),
        "psnr": None if difference.identical else round(difference.psnr, 2),
        "ssim": None if difference.ssim is None else round(difference.ssim, 5),
        "causes": [{"cause": c.text, "evidence": c.evidence} for c in verdict.causes],
    }
