"""A job's samples, drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import Recipe, SampleRequest
from ..core.results import SampleResult
from ..engine.control_images import read_control_image
from ..engine.engine import Engine
from .job import Job, JobSample, requests_of


@dataclass(frozen=True)
class Rendered:
    """A sample of a job, drawn again."""

    sample: JobSample
    request: SampleRequest
    result: SampleResult


def planned(
    job: Job,
    recipe: Recipe,
    only: tuple[int, ...] = (),
    controls: Path | None = None,
    anyway: bool = False,
) -> list[tuple[JobSample, SampleRequest]]:
    """The requests of a job's samples, or of those numbered in `only`.

    controls: a folder that holds the control images under their names, where the paths in the
    configuration are another machine's. anyway: a control image that is nowhere is left out, if the
    model can do without. Raises InvalidInputError for it otherwise, and for a number that the job
    has not.
    """
    wanted = set(only) or {sample.index for sample in job.samples}
    if strange := sorted(wanted - {sample.index for sample in job.samples}):
        raise InvalidInputError(
            f"the job has samples 0 to {len(job.samples) - 1}; there is no number {strange[0]}"
        )
    chosen = replace(job, samples=tuple(s for s in job.samples if s.index in wanted))
    needed = not anyway or job.spec.control_images.required > 0
    names = dict.fromkeys(name for sample in chosen.samples for name in sample.controls)
    files = {name: find_control(name, controls, needed) for name in names}
    images = {name: read_control_image(file) for name, file in files.items() if file}
    return list(zip(chosen.samples, requests_of(chosen, recipe, images), strict=True))


def render(
    engine: Engine,
    requests: list[tuple[JobSample, SampleRequest]],
    on_sample: Callable[[int, int], None] = lambda done, total: None,
    **reports: Any,
) -> Iterator[Rendered]:
    """The samples one by one. on_sample: told of each finished one; reports: see Engine.sample."""
    for _, request in requests:
        engine.plan(request)  # refuses what it can before the first is drawn
    for done, (sample, request) in enumerate(requests, 1):
        yield Rendered(sample, request, engine.sample(request, **reports))
        on_sample(done, len(requests))


def sample_name(step: int, index: int, ending: str) -> str:
    """The file name of a rendered sample."""
    return f"{step:09d}_{index}.{ending}"


def find_control(path: str, folder: Path | None, needed: bool = True) -> Path | None:
    """Where a control image of the configuration is on this machine.

    If it is neither where the job had it nor in the folder, None, or InvalidInputError if needed.
    """
    name = path.replace("\\", "/").rpartition("/")[2]
    places = [folder / name] if folder else [Path(path)]
    for place in places:
        if place.is_file():
            return place
    if not needed:
        return None
    raise InvalidInputError(
        f"the job's control image {name} is not {'in ' + str(folder) if folder else 'at ' + path}; "
        "put it into a folder and name that with --control-images"
    )


def as_trained(job: Job, step: int, weights: str = "", anyway: bool = False) -> Recipe:
    """The recipe of a step, if all that shapes its samples is reproduced.

    anyway: also if not. Raises InvalidInputError with the fields that are missing.
    """
    missing = [problem for problem in job.problems if problem.pixels]
    if missing and not anyway:
        listed = "; ".join(map(str, missing))
        raise InvalidInputError(
            f"{len(missing)} setting(s) of {job.name} shape its samples and are not reproduced: "
            f"{listed}. Render anyway with --anyway, knowing that the pictures differ"
        )
    return job.recipe(step, weights)
