"""The engine beside the trainer's own code, in one run: every picture the same file."""

from __future__ import annotations

from typing import Any

import harness
import pytest
from rows import Row, all_rows

from ai_toolkit_inference import Engine

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
