"""Weights and pictures are found by the names that the trainer gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.jobs.folder import (
    choose_checkpoint,
    find_checkpoints,
    find_samples,
    find_steps,
)


def weights(folder: Path, name: str, step: int | None = None) -> None:
    info = {} if step is None else {"training_info": json.dumps({"step": step, "epoch": 0})}
    save_file({"a": torch.zeros(1)}, folder / f"{name}.safetensors", metadata=info)


def test_weights_by_step_with_the_final_ones_last(tmp_path):
    weights(tmp_path, "mine_000000500", 500)
    weights(tmp_path, "mine_000000250", 250)
    weights(tmp_path, "mine", 600)
    for other in ("mine_t2i_000000250", "mine2", "mine_x", "other_000000250"):
        weights(tmp_path, other)
    found = find_checkpoints(tmp_path, "mine")
    assert [(c.step, c.final) for c in found] == [(250, False), (500, False), (600, True)]
    assert choose_checkpoint(found, 600).path == tmp_path / "mine.safetensors"
    with pytest.raises(InvalidInputError, match=r"no weights of step 100.*250, 500, 600"):
        choose_checkpoint(found, 100)


def test_pairs_of_two_experts_either_of_which_may_be_missing(tmp_path):
    for name in ("mine_000000250_high_noise", "mine_000000250_low_noise", "mine_low_noise"):
        weights(tmp_path, name, 300)
    pair, low = find_checkpoints(tmp_path, "mine")
    assert [file.stem[15:] for file in pair.files] == ["high_noise", "low_noise"]
    assert (low.path, low.step, low.final) == (None, 300, True)
    assert find_steps(tmp_path) == {250, 300}


def test_a_lora_beside_an_embedding_has_a_name_of_its_own(tmp_path):
    weights(tmp_path, "mine_LoRA_000000250")
    (found,) = find_checkpoints(tmp_path, "mine")
    assert found.step == 250


def test_a_damaged_file_is_listed_without_step(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"no")
    (found,) = find_checkpoints(tmp_path, "mine")
    assert (found.step, found.final) == (None, True)


def test_samples_by_step_and_a_restart_begins_a_new_set(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    for time, step, index in ((10, 0, 0), (11, 0, 1), (20, 250, 0), (30, 0, 0), (31, 0, 1)):
        (samples / f"{time}__{step:09d}_{index}.jpg").write_bytes(b"")
    for other in (".tmp", "10__000000000_0.txt", "picture.png"):
        (samples / other).write_bytes(b"")
    found = find_samples(tmp_path)
    assert [(group.step, sorted(group.files)) for group in found] == [(0, [0, 1])] * 2 + [
        (250, [0])
    ]
    assert found[1].files[0].name.startswith("30__")


def test_a_folder_without_samples_has_none(tmp_path):
    assert find_samples(tmp_path) == ()
