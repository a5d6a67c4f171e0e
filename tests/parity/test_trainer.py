"""The engine beside the trainer's own code, in one run: every picture the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from rows import Row, all_rows, job, lora_file
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._registry import get_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        bool(harness.trainer_available()),
        reason=f"{harness.trainer_available()}; the stored goldens are checked instead",
    ),
]
ROWS = [] if harness.trainer_available() else list(all_rows(harness.trainer_profile()))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("trainer")
    return harness.trainer_pictures(ROWS, harness.trainer_profile(), out, "cpu")[0], out


@pytest.fixture(scope="module")
def cpu() -> Engine:
    return Engine("cpu")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_picture_is_the_trainers_file(cpu: Engine, drawn: Any, row: Row) -> None:
    differences = harness.compare_row(cpu, row, harness.trainer_profile(), *drawn)
    assert [off for off in differences if not off.same_file] == []


@pytest.mark.parametrize("spelling", ["diffusion_model.{}", "lycoris_{}"])
def test_the_trainer_fails_at_a_lokr_that_recovers_accuracy(tmp_path: Path, spelling: str) -> None:
    profile = harness.trainer_profile()
    row = next(row for row in ROWS if row.id == "zimage-bf16-recovery_uint3")
    file = tmp_path / "lokr.safetensors"
    save_file(_as_lokr(lora_file(row.model, profile), spelling), file)
    given = job(row, profile, tiny_folder(get_model(row.model.id)))
    given["model"]["qtype"] = f"uint3|{file}"
    with pytest.raises(RuntimeError, match="There are not any lora modules in this network"):
        harness.run_trainer([given], tmp_path / "out")


def _as_lokr(file: Path, spelling: str) -> dict[str, torch.Tensor]:
    # the same deltas: a factor of one number, and all the rest
    tensors, lokr = load_file(file), {}
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        up = tensors[key.replace("lora_A", "lora_B")]
        path = key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
        name = spelling.format(path if "." in spelling else path.replace(".", "_"))
        lokr[f"{name}.lokr_w1"] = torch.ones(1, 1, dtype=up.dtype)
        lokr[f"{name}.lokr_w2"] = up @ tensors[key]
    return lokr
