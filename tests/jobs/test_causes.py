"""Every cause of a difference is found where there is evidence for it, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ai_toolkit_inference.core.requests import AdapterRef, Recipe, SampleRequest
from ai_toolkit_inference.core.results import SampleResult
from ai_toolkit_inference.jobs.causes import Finding, find_causes
from ai_toolkit_inference.jobs.compare import Difference, Pair, compare
from ai_toolkit_inference.jobs.fields import Problem
from ai_toolkit_inference.jobs.folder import SampleSet
from ai_toolkit_inference.jobs.job import Job, JobSample, read_job
from ai_toolkit_inference.jobs.render import Rendered

PICTURE = Image.new("RGB", (8, 8))
ROUNDED = Difference(False, True, 4, 0.5, 40.0, 0.99)


@pytest.fixture
def job() -> Job:
    """A job of which nothing is suspicious: quantized, as configured, from its own base."""
    return read_job("tiny")


@pytest.fixture
def find(tmp_path, job):
    """The causes of one sample: find(job=, step=, device=, version=, dtype=, ours=, ...)."""

    def find(
        job: Job = job,
        step: int = 4,
        device: str = "cpu",
        version: str = "0.12.26",
        dtype: torch.dtype = torch.float32,
        size: int = 8,
        off: int = 1,
        weights: str = "tiny",
        controls: tuple[str, ...] = (),
        pictures: int = 0,
        rounding: Difference | None = None,
    ) -> list[Any]:
        file = tmp_path / "a.safetensors"
        software = json.dumps({"name": "ai-toolkit", "version": version})
        save_file({"a": torch.ones(2, dtype=dtype)}, file, {"software": software})
        recipe = Recipe("sd15", weights, adapters=(AdapterRef(str(file)),))
        request = SampleRequest(recipe, control_images=(PICTURE,) * pictures)
        ours, theirs = (
            np.full((1, side, 8, 3), off * n, np.uint8) for n, side in ((0, size), (1, 8))
        )
        pair = Pair(ours, theirs, False)
        sample = JobSample(0, "a", {}, 1.0, controls)
        drawn = Rendered(sample, request, SampleResult(ours, 1.0, {}))
        finding = Finding(drawn, step, pair, compare(pair), rounding)
        return list(find_causes(job, finding, torch.device(device)))

    return find


def words(causes: list[Any]) -> list[str]:
    return [f"{cause.text}: {cause.evidence}" for cause in causes]


def test_without_evidence_there_is_no_cause(find):
    assert find() == []


def test_another_size(find):
    (cause,) = words(find(size=6))
    assert "configuration was changed" in cause
    assert cause.endswith("the trainer's file has 8x8 px, this 8x6 px")


def test_a_missing_control_image(find):
    (cause,) = words(find(controls=(__file__,) * 2, pictures=1))
    assert cause.startswith("A control image is missing: the sample was drawn with 1 of 2: ")


def test_a_control_image_from_elsewhere(find):
    (cause,) = words(find(controls=("/data/cat.png",), pictures=1))
    assert "of the same name" in cause
    assert cause.endswith("not on this machine: /data/cat.png")


def test_settings_that_are_not_reproduced(find, job):
    problems = (Problem("model.vae_path", "x", "another VAE"), Problem("b", 1, "?", pixels=False))
    (cause,) = words(find(job=replace(job, problems=problems)))
    assert cause == "Settings that are not reproduced: model.vae_path = 'x': another VAE"


@pytest.mark.parametrize(("off", "weight"), [(8, 0.9), (9, 0.4)])
def test_weights_saved_coarser_than_they_were(find, off, weight):
    rounding = replace(ROUNDED, mean=9.0)
    (cause,) = find(dtype=torch.float16, off=off, rounding=rounding)
    assert cause.weight == weight
    assert cause.text == "The weights were saved as fp16; the trainer drew from fp32"
    assert f"up to 4 levels, 9.00 on average; the difference is {off}, {off}.00" in cause.evidence


@pytest.mark.parametrize(
    ("job_device", "device", "count"),
    [("cuda:0", "cpu", 1), ("cuda", "cpu", 1), ("cpu", "cpu", 0), ("", "cpu", 0)],
)
def test_another_device(find, job, job_device, device, count):
    causes = words(find(job=replace(job, device=job_device), device=device))
    assert len(causes) == count
    assert all(text.endswith(f"says {job_device}, this was drawn on {device}") for text in causes)


def test_another_gpu(find, job, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    (cause,) = words(find(job=replace(job, device="cuda:0"), device="cuda:1"))
    assert "another kind of GPU" in cause
    assert "drawn on Card 1; the trainer does not record its own" in cause


@pytest.mark.parametrize(
    ("steps", "changes", "count"),
    [
        ((0, 2, 3, 4), {"live": False}, 2),
        ((0, 4), {"live": False}, None),  # merging a network of zeros changes nothing
        ((0, 2, 4), {"live": False, "dtype": "fp32"}, None),
        ((0, 2, 4), {}, None),  # live
    ],
)
def test_a_base_that_drifted(find, job, steps, changes, count):
    sets = tuple(SampleSet(step, {}) for step in steps)
    causes = words(find(job=replace(job, sample_sets=sets, **changes)))
    assert len(causes) == (0 if count is None else 1)
    assert all("base had drifted" in text and f"{count} sampling(s)" in text for text in causes)


def test_another_base(find, job):
    (cause,) = words(find(weights="/other"))
    assert cause == "Another base model: the job was trained on 'tiny', this is '/other'"
    own = replace(job, section={"name_or_path": job.spec.repo_id.upper()})
    assert find(job=own, weights="huggingface") == []


@pytest.mark.parametrize("version", ["0.7.19", "0.9.4", ""])
def test_another_version(find, version):
    causes = words(find(version=version))
    assert len(causes) == (version != "0.7.19")
    said = version or "no version"
    assert all(f"the file says {said}; compared were 0.12.26, 0.7.19" in text for text in causes)


def test_the_likeliest_comes_first(find, job):
    job = replace(job, device="cuda", live=False, problems=(Problem("a", 1, "b"),))
    causes = find(
        job=job, version="0.9.4", dtype=torch.bfloat16, weights="/other", size=6, rounding=ROUNDED
    )
    assert [cause.text.split()[0:3] for cause in causes] == [
        ["The", "configuration", "was"],
        ["Settings", "that", "are"],
        ["The", "trainer", "drew"],
        ["The", "base", "had"],
        ["The", "weights", "were"],
        ["Another", "base", "model"],
        ["The", "trainer's", "version"],
    ]
    assert [cause.weight for cause in causes] == sorted((c.weight for c in causes), reverse=True)
