"""Verdicts as a page of HTML that needs nothing else, and as a sheet of pictures."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.whole_file import whole_file
from .compare import HEAT, side_by_side
from .job import Job
from .verdict import DRIFTED, IDENTICAL, Verdict, in_words, summary

COLOURS = {IDENTICAL: "#2a7d46", DRIFTED: "#b3372f"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fafafa }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ccc }
.verdict { color: #fff; border-radius: .3rem; padding: .1rem .5rem; font-size: .9rem }
td, th { text-align: left; padding: .1rem 1rem .1rem 0 } .small { color: #666; font-size: .9rem }
"""


def sheet(verdicts: list[Verdict]) -> np.ndarray:
    """Every sample in a row of three: the trainer's, ours, where they differ; uint8 (H, W, 3)."""
    rows = [side_by_side(verdict.pair) for verdict in verdicts]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(padded)


def write_report(job: Job, verdicts: list[Verdict], path: Path) -> None:
    """Writes the page: what was compared, the verdicts, the pictures, the likely causes."""
    counts = summary(verdicts)
    body = [
        f"<h1>{escape(job.name)}: are these its samples?</h1>",
        f"<p>{escape(job.spec.title)} (<code>{job.spec.id}</code>), {job.dtype}. "
        f"{counts['identical']} identical, {counts['within_save_rounding']} within what saving the "
        f"weights rounded off, {counts['drifted']} drifted.</p>",
        f'<p class="small">Each row: the trainer&rsquo;s sample, this rendering, where they differ '
        f"(black: not at all; white: {HEAT} levels of 255 or more).</p>",
        *_made_with(verdicts),
        *(_sample(verdict) for verdict in verdicts),
        *_problems(job),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(job.name)}</title><style>{STYLE}</style>{''.join(body)}</html>"
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sample(verdict: Verdict) -> str:
    colour = COLOURS.get(verdict.verdict, "#8a6d1a")
    causes = "".join(
        f"<li>{escape(cause.text)} <span class=small>({escape(cause.evidence)})</span></li>"
        for cause in verdict.causes
    )
    return (
        f"<h2>Step {verdict.step}, sample {verdict.index} "
        f'<span class="verdict" style="background:{colour}">{verdict.verdict}</span></h2>'
        f"<p class=small>{escape(verdict.file.name)}{_which_frame(verdict)}</p>"
        f"<img alt='' src='{_data(side_by_side(verdict.pair))}'>"
        f"{_numbers(verdict)}" + (f"<p>Likely causes:</p><ol>{causes}</ol>" if causes else "")
    )


def _made_with(verdicts: list[Verdict]) -> list[str]:
    # the environment of the renderings is one and the same
    info = next((verdict.info for verdict in verdicts if verdict.info), None)
    if info is None:
        return []
    libraries = ", ".join(f"{name} {number}" for name, number in info["libraries"].items())
    adapters = ", ".join(adapter["file"] for adapter in info["adapters"]) or "none"
    text = (
        f"Drawn on {info['device']} as trainer {info['trainer_version']} draws; base "
        f"{info['weights']}, weights {adapters}; {libraries}."
    )
    return [f'<p class="small">{escape(text)}</p>']


def _which_frame(verdict: Verdict) -> str:
    frames = len(verdict.pair.theirs)
    if frames == 1:
        return ""
    return f", frame {verdict.pair.shown + 1} of {frames}, the one that differs most"


def _numbers(verdict: Verdict) -> str:
    if not verdict.difference.same_size:
        return f"<p>{escape(in_words(verdict))}</p>"
    rows: list[tuple[str, Any]] = [("difference", verdict.difference)]
    if verdict.rounding is not None:
        rows.append(("what rounding the weights otherwise does", verdict.rounding))
    cells = "".join(
        f"<tr><td>{name}<td>{d.most}<td>{d.mean:.3f}<td>{d.psnr:.1f}"
        f"<td>{'-' if d.ssim is None else f'{d.ssim:.4f}'}</tr>"
        for name, d in rows
    )
    return f"<table><tr><th><th>most<th>mean<th>PSNR, dB<th>SSIM</tr>{cells}</table>"


def _problems(job: Job) -> list[str]:
    if not job.problems:
        return []
    listed = "".join(f"<li>{escape(str(problem))}</li>" for problem in job.problems)
    return [f"<h2>Settings of the job that are not reproduced or not known</h2><ul>{listed}</ul>"]


def _data(picture: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
