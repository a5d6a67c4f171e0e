"""What the tests of job folders share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from arithmetic import bf16_arithmetic

MANIFEST = Path(__file__).resolve().parents[1] / "goldens" / "manifest.json"


@pytest.fixture(scope="session")
def golden_bf16() -> None:
    """Skips where the processor rounds bf16 otherwise than the one that trained the jobs."""
    stored = json.loads(MANIFEST.read_text(encoding="utf-8"))["0.12.26"]["bf16_arithmetic"]
    if bf16_arithmetic() != stored:
        pytest.skip("this processor's bf16 kernels round otherwise than those of the jobs")
