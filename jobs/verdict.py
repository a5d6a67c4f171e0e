"""Whether renderings are the trainer's samples, and if not, why, judged by what is there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.missing import pip_command
from ..engine.engine import Engine
from .causes import Cause, Finding, find_causes
from .compare import Difference, Pair, compare, load_pair
from .folder import SampleSet
from .job import Job
from .render import Rendered
from .rounding import saved_dtype, write_dithered

IDENTICAL, ROUNDING, DRIFTED = "identical", "within save-rounding", "drifted"


@dataclass(frozen=True)
class Verdict:
    """One sample judged. rounding: what dithering the saved values did to it, if that was tried.

    info: what the rendering says of itself, empty if that is not known.
    """

    index: int
    step: int
    file: Path
    verdict: str
    difference: Difference
    pair: Pair
    rounding: Difference | None = None
    causes: tuple[Cause, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


def judge(engine: Engine, job: Job, drawn: Rendered, against: SampleSet) -> Verdict:
    """What is to be said of one rendering beside the trainer's file of the same sample."""
    file = against.files[drawn.sample.index]
    pair = load_pair(drawn.result, file)
    difference = compare(pair)
    verdict, rounding, causes = IDENTICAL, None, ()
    if not difference.identical:
        rounding = _rounding(engine, drawn, file)
        finding = Finding(drawn, against.step, pair, difference, rounding)
        verdict = ROUNDING if finding.within_rounding else DRIFTED
        causes = find_causes(job, finding, engine.device)
    return Verdict(
        drawn.sample.index,
        against.step,
        file,
        verdict,
        difference,
        pair,
        rounding,
        causes,
        drawn.result.info,
    )


def _rounding(engine: Engine, drawn: Rendered, file: Path) -> Difference | None:
    # the same sample with every adapter file rounded otherwise; None if nothing was lost in saving
    refs = drawn.request.recipe.adapters
    if not any(saved_dtype(Path(name)) != "fp32" for ref in refs for name in ref.files):
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


def in_words(verdict: Verdict) -> str:
    """How far a sample is off, empty if it is identical."""
    off = verdict.difference
    if off.identical:
        return ""
    if not off.same_size:
        return "another size"
    return f"most {off.most} levels, mean {off.mean:.2f}, PSNR {off.psnr:.1f} dB"


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """The verdicts, JSON-ready."""
    return {
        "identical": sum(v.verdict == IDENTICAL for v in verdicts),
        "within_save_rounding": sum(v.verdict == ROUNDING for v in verdicts),
        "drifted": sum(v.verdict == DRIFTED for v in verdicts),
        "samples": [_entry(v) for v in verdicts],
        **_missing(),
    }


def _missing() -> dict[str, str]:
    # the numbers that an optional package gives
    if find_spec("skimage"):
        return {}
    return {"missing": f"ssim needs scikit-image; run `{pip_command('scikit-image')}`"}


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
