"""The LoRAs that a job's `model` section names are found, or said to be missing."""

from __future__ import annotations

import json

import pytest

from ai_toolkit_inference.jobs.describe import describe
from ai_toolkit_inference.jobs.job import read_job


@pytest.fixture
def job(tmp_path):
    """The job of a model with further fields in its sections."""

    def job(model, train=(), **fields):
        process = {
            "type": "sd_trainer",
            "train": {"dtype": "bf16", **dict(train)},
            "model": {"arch": model, "name_or_path": str(tmp_path), **fields},
            "sample": {"neg": "", "prompts": ["a cat"]},
        }
        config = {"name": "mine", "process": [process]}
        (tmp_path / ".job_config.json").write_text(json.dumps({"job": "x", "config": config}))
        return read_job(tmp_path)

    return job


def test_a_repository_is_kept_as_an_address(job):
    found = job("zimage:turbo", assistant_lora_path="ostris/adapter/v2.safetensors")
    assert found.recipe(0).assistant_lora_path == "hf://ostris/adapter/v2.safetensors"
    assert found.problems == ()
    assert "with ostris/adapter/v2.safetensors (assistant_lora_path)" in describe(found)


def test_a_file_of_another_machine_is_looked_for_in_the_jobs_folder(job, tmp_path):
    path = "D:\\training\\adapters\\a.safetensors"
    missing = job("flux", inference_lora_path=path)
    assert missing.recipe(0).inference_lora_path == ""
    (problem,) = missing.problems
    assert problem.pixels
    assert f"put it into {tmp_path}" in str(problem)
    (tmp_path / "a.safetensors").touch()
    found = job("flux", inference_lora_path=path)
    assert found.recipe(0).inference_lora_path == str(tmp_path / "a.safetensors")
    assert found.problems == ()


def test_what_the_trainer_does_not_read_changes_nothing(job):
    ignored = job("chroma", lora_path="a/b/c.safetensors")
    assert ignored.recipe(0).lora_path == ""
    assert [problem.pixels for problem in ignored.problems] == [False]
    strange = job("chroma", assistant_lora_path="a/b/c.safetensors")
    assert [problem.pixels for problem in strange.problems] == [True]


def test_averaged_weights_are_told_of(job):
    assert "averaged (EMA)" in describe(job("flux", train={"ema_config": {"use_ema": True}}))
    assert "averaged (EMA)" not in describe(job("flux", train={"ema_config": {"use_ema": False}}))
