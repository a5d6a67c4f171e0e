"""What the trainer left in a job folder: weights by step, and pictures by step and number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..adapters.read import read_metadata
from ..core.errors import AitkError, InvalidInputError

SAMPLE = re.compile(r"(\d+)__(\d{9,})_(\d+)\.(jpg|jpeg|png|webp|mp4)")
ANY = "*.safetensors"
TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "tiny_job"
STEP = re.compile(r"_(\d{9,})(_high_noise|_low_noise)?$")
SIDES = {"_high_noise": "high", "_low_noise": "low"}
# what the trainer saves beside a network, under the same name
OTHERS = re.compile(r"_(t2i|cn|clip|ip|adapter)(_\d+)?$")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one step: a file, or the files of two experts, either of which may be missing.

    step: None if the file does not say. final: it bears no step in its name.
    """

    step: int | None
    final: bool
    path: Path | None
    low: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for file in (self.path, self.low) if file is not None)


@dataclass(frozen=True)
class SampleFile:
    """One picture or clip that the trainer drew. time: ms since 1970."""

    step: int
    index: int
    time: int
    path: Path


@dataclass(frozen=True)
class SampleSet:
    """The pictures of one sampling: position in the job's list of samples -> file."""

    step: int
    files: dict[int, Path]


def job_folder(name: str | Path) -> Path:
    """The folder that is named; `tiny` is a small trained job, on the tiny weights."""
    return TINY_FOLDER if str(name) == TINY else Path(name)


def find_checkpoints(folder: Path, name: str) -> tuple[Checkpoint, ...]:
    """A job's saved networks by rising step, the one without step in its name last."""
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob(ANY)):
        parts = _split_name(file.stem, name)
        if parts is not None:
            tail, side = parts
            found.setdefault(tail, {})[side] = file
    checkpoints = [_checkpoint(tail, sides) for tail, sides in found.items()]
    return tuple(sorted(checkpoints, key=lambda c: (c.final, -1 if c.step is None else c.step)))


def find_steps(folder: Path) -> set[int]:
    """The steps of a folder's weights, by their names, or else by their headers."""
    named = {file: STEP.search(file.stem) for file in folder.glob(ANY)}
    steps = {int(found[1]) if found else _recorded_step(file) for file, found in named.items()}
    return {step for step in steps if step is not None}


def find_samples(folder: Path) -> tuple[SampleSet, ...]:
    """The job's drawn samples, by rising step and time.

    One step may have several sets: it was sampled before training, or again after a restart.
    """
    files = []
    for path in sorted((folder / "samples").glob("*")):
        found = SAMPLE.fullmatch(path.name)
        if found and path.is_file():
            files.append(SampleFile(int(found[2]), int(found[3]), int(found[1]), path))
    return tuple(_sets(sorted(files, key=lambda f: (f.step, f.time, f.index))))


def choose_checkpoint(checkpoints: tuple[Checkpoint, ...], step: int) -> Checkpoint:
    """The weights that a sample of this step was drawn with.

    Raises InvalidInputError with the steps there are if those weights were not kept.
    """
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return checkpoint
    steps = ", ".join(str(c.step) for c in checkpoints if c.step is not None) or "none"
    raise InvalidInputError(
        f"the job folder has no weights of step {step}; it has those of: {steps}. The trainer "
        "keeps only the last few (save.max_step_saves_to_keep)"
    )


def _split_name(stem: str, name: str) -> tuple[str, str] | None:
    # ("_000000250" or "", side), or None for a file of something else
    for middle in (name + "_LoRA", name):
        if stem.startswith(middle):
            tail = stem[len(middle) :]
            break
    else:
        return None
    side = ""
    for ending, expert in SIDES.items():
        if tail.endswith(ending):
            tail, side = tail[: -len(ending)], expert
    if OTHERS.match(tail) or not re.fullmatch(r"(_\d{9,})?", tail):
        return None
    return tail, side


def _checkpoint(tail: str, sides: dict[str, Path]) -> Checkpoint:
    high, low = sides.get("", sides.get("high")), sides.get("low")
    recorded = _recorded_step(next(iter(sides.values())))
    step = int(tail[1:]) if tail else recorded
    return Checkpoint(step, not tail, high, low)


def _recorded_step(path: Path) -> int | None:
    # the trainer writes the step into the file as well
    try:
        info = json.loads(read_metadata(path).get("training_info", "{}"))
    except (AitkError, ValueError):
        return None  # a damaged file is refused when it is used, with the reason
    step = info.get("step") if isinstance(info, dict) else None
    return step if isinstance(step, int) else None


def _sets(files: Iterable[SampleFile]) -> Iterable[SampleSet]:
    current: dict[int, Path] = {}
    step = None
    for file in files:
        if current and (file.step != step or file.index in current):
            yield SampleSet(int(step or 0), current)
            current = {}
        step = file.step
        current[file.index] = file.path
    if current:
        yield SampleSet(int(step or 0), current)
