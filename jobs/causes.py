"""Why a rendering may differ from the trainer's sample: what there is evidence for, ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..adapters.read import read_metadata
from ..core.requests import SampleRequest
from ..core.versions import PROFILES, trainer_version
from .compare import Difference, Pair
from .job import Job
from .render import Rendered
from .rounding import saved_dtype

MARGIN = 2.0  # one dithering is a sample of what rounding may do, not its bound


@dataclass(frozen=True)
class Cause:
    """A likely reason of a difference, with what it is read from. weight: 1 is sure."""

    weight: float
    text: str
    evidence: str


@dataclass(frozen=True)
class Finding:
    """A rendering beside the trainer's file of the same sample, measured.

    rounding: what dithering the saved values did to the sample; None if they were not rounded.
    """

    drawn: Rendered
    step: int
    pair: Pair
    difference: Difference
    rounding: Difference | None = None

    @property
    def within_rounding(self) -> bool:
        """Whether the rounding of the saved values alone may do this."""
        off, rounded = self.difference, self.rounding
        return (
            rounded is not None
            and off.same_size
            and off.most <= MARGIN * max(rounded.most, 1)
            and off.mean <= MARGIN * rounded.mean
        )


def find_causes(job: Job, finding: Finding, device: torch.device) -> tuple[Cause, ...]:
    """Why a rendering on a device differs, the likeliest first."""
    request = finding.drawn.request
    looks: tuple[Callable[[], Cause | None], ...] = (
        lambda: _size(finding),
        lambda: _missing_pictures(finding.drawn),
        lambda: _settings(job),
        lambda: _saved(finding),
        lambda: _device(job, device),
        lambda: _base_drift(job, finding.step),
        lambda: _other_base(job, request),
        lambda: _version(request),
        lambda: _moved_pictures(finding.drawn),
        lambda: _other_gpu(job, device),
    )
    found = [cause for look in looks if (cause := look()) is not None]
    return tuple(sorted(found, key=lambda cause: -cause.weight))


def _size(finding: Finding) -> Cause | None:
    if finding.difference.same_size:
        return None
    return Cause(
        1.0,
        "The configuration was changed after these samples, or the file is of another job",
        f"the trainer's file has {size_of(finding.pair.theirs)}, this {size_of(finding.pair.ours)}",
    )


def size_of(frames: np.ndarray) -> str:
    """The size of a picture or clip, in words."""
    count, height, width = frames.shape[:3]
    return f"{width}x{height} px" + (f", {count} frames" if count > 1 else "")


def _missing_pictures(drawn: Rendered) -> Cause | None:
    given, wanted = len(drawn.request.control_images), len(drawn.sample.controls)
    if given >= wanted:
        return None
    return Cause(
        0.98,
        "A control image is missing",
        f"the sample was drawn with {given} of {wanted}: {', '.join(drawn.sample.controls)}",
    )


def _moved_pictures(drawn: Rendered) -> Cause | None:
    moved = [path for path in drawn.sample.controls if not Path(path).is_file()]
    if not moved or not drawn.request.control_images:
        return None
    return Cause(
        0.25,
        "Another control image of the same name",
        f"the job's own is not on this machine: {', '.join(moved)}",
    )


def _settings(job: Job) -> Cause | None:
    missing = [problem for problem in job.problems if problem.pixels]
    if not missing:
        return None
    return Cause(0.95, "Settings that are not reproduced", "; ".join(map(str, missing)))


def _saved(finding: Finding) -> Cause | None:
    rounding, off = finding.rounding, finding.difference
    if rounding is None:
        return None
    refs = finding.drawn.request.recipe.adapters
    kinds = {saved_dtype(Path(name)) for ref in refs for name in ref.files}
    return Cause(
        0.9 if finding.within_rounding else 0.4,
        f"The weights were saved as {' and '.join(sorted(kinds))}; the trainer drew from fp32",
        f"rounding the file otherwise moves this picture by up to {rounding.most} levels, "
        f"{rounding.mean:.2f} on average; the difference is {off.most}, {off.mean:.2f}",
    )


def _device(job: Job, device: torch.device) -> Cause | None:
    if not job.device or job.device.partition(":")[0] == device.type:
        return None
    return Cause(
        0.7,
        "The trainer drew on another device, whose kernels round otherwise",
        f"the job says {job.device}, this was drawn on {device}",
    )


def _other_gpu(job: Job, device: torch.device) -> Cause | None:
    if device.type != "cuda" or not job.device.startswith("cuda"):
        return None
    return Cause(
        0.2,
        "The trainer drew on another kind of GPU, whose kernels round otherwise",
        f"this was drawn on {torch.cuda.get_device_name(device)}; the trainer does not record its "
        "own",
    )


def _base_drift(job: Job, step: int) -> Cause | None:
    # at step 0 the network is all zero, and merging that changes nothing
    before = [group.step for group in job.sample_sets if 0 < group.step < step]
    if job.live or not before or job.dtype == "fp32":
        return None
    return Cause(
        0.6,
        "The base had drifted: at every sampling the trainer merges the LoRA into it and takes it "
        "out again, which rounds the weights twice",
        f"not quantized, {job.dtype}, one multiplier for all samples, {len(before)} sampling(s) "
        f"since training began and before step {step}",
    )


def _version(request: SampleRequest) -> Cause | None:
    refs = request.recipe.adapters
    found = {trainer_version(read_metadata(Path(n))) for ref in refs for n in ref.files}
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
