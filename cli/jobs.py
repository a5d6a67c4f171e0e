"""`aitk job`: a trainer's job folder shown, its samples drawn again, and compared with its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .commands import open_device, progress, said_once, say


def job_show(options: argparse.Namespace) -> dict[str, Any]:
    """What a job folder holds, and which of its settings are not reproduced."""
    from ..jobs.describe import describe, summary
    from ..jobs.job import read_job

    job = read_job(options.folder, options.process)
    if not options.json:
        say(describe(job))
    return summary(job)


def job_render(options: argparse.Namespace) -> dict[str, Any]:
    """Draws the samples of a step into --out, named by step and number."""
    from ..engine.files import check_format, save_sample
    from ..jobs.job import read_job
    from ..jobs.render import render, sample_name

    job = read_job(options.folder, options.process)
    step = job.find_step(options.step)
    check_format(Path(f"sample.{job.format}"))
    requests = _requests(options, job, step)
    files = []
    for drawn in render(open_engine(options), requests, **_reports(options)):
        file = Path(options.out) / sample_name(step, drawn.sample.index, job.format)
        files.append(str(save_sample(drawn.result, file)))
        if not options.json:
            say(files[-1])
    return {"step": step, "files": files}


def job_compare(options: argparse.Namespace) -> dict[str, Any]:
    """Draws the samples of a step, and says whether they are the trainer's."""
    from ..jobs.job import LATEST, read_job
    from ..jobs.render import render
    from ..jobs.report import write_report
    from ..jobs.verdict import judge, summary

    job = read_job(options.folder, options.process)
    step = job.find_step(options.step, with_samples=True)
    against, engine = job.samples_of(step), open_engine(options)
    later = sorted({group.step for group in job.sample_sets if group.step > step})
    if later and not options.json and options.step == LATEST:
        say(f"step {step} is the latest with weights; there are samples of {_listed(later)} too")
    requests = [pair for pair in _requests(options, job, step) if pair[0].index in against.files]
    verdicts = []
    for drawn in render(engine, requests, **_reports(options)):
        verdicts.append(judge(engine, job, drawn, against))
        if not options.json:
            say(_line(verdicts[-1]))
    if options.report:
        write_report(job, verdicts, Path(options.report))
        if not options.json:
            say(f"report: {options.report}")
    return {"step": step} | summary(verdicts)


def open_engine(options: argparse.Namespace) -> Any:
    """The engine on the device that was asked for."""
    from ..engine import Engine

    return Engine(open_device(options.device))


def _requests(options: argparse.Namespace, job: Any, step: int) -> Any:
    from ..jobs.render import as_trained, planned

    recipe = as_trained(job, step, options.weights, options.anyway)
    controls = Path(options.control_images) if options.control_images else None
    return planned(job, recipe, tuple(options.only), controls, options.anyway)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def _reports(options: argparse.Namespace) -> dict[str, Any]:
    report = progress(options)
    return {
        "on_status": said_once(report),
        "on_step": lambda step: report(f"step {step.index}/{step.total}"),
        "on_sample": lambda done, total: report("" if done == total else f"{done} of {total}"),
    }


def _line(verdict: Any) -> str:
    from ..jobs.verdict import in_words

    words = in_words(verdict)
    text = f"step {verdict.step}, sample {verdict.index}: {verdict.verdict}"
    text += f" ({words})" if words else ""
    return "\n".join([text, *(f"  {cause.text}: {cause.evidence}" for cause in verdict.causes)])
