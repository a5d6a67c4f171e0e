"""How far a download is, in words."""

from __future__ import annotations

import math
import time
from collections import deque

WINDOW = 5.0  # seconds that the speed is of, or more where less comes at once
STALLED = 30.0  # seconds without a byte, after which there is no speed
GIGABYTES = 10**10  # bytes from which on they are given as such


class Meter:
    """What a download has, of how much, and how fast it was lately. name: what is downloaded."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._marks: deque[tuple[float, int]] = deque()

    def text(self, done: int, total: int | None) -> str:
        """A line for `done` bytes, now."""
        now = time.monotonic()
        if not self._marks or done != self._marks[-1][1]:
            self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW:
            self._marks.popleft()
        return f"Downloading {self._name} {sizes(done, total)}{self._speed(now)}"

    def _speed(self, now: float) -> str:
        (start, before), (end, done) = self._marks[0], self._marks[-1]
        if end <= start or done <= before or now - end > STALLED:
            return ""
        return f", {(done - before) / (end - start) / 1e6:.1f} MB/s"


def sizes(done: int, total: int | None) -> str:
    """`12/280 MB`, `1.2/28.6 GB`, or `12 MB` where the whole is not known."""
    if max(done, total or 0) >= GIGABYTES:
        return f"{done / 1e9:.1f}{'' if total is None else f'/{total / 1e9:.1f}'} GB"
    return f"{megabytes(done)}{'' if total is None else f'/{megabytes(total)}'} MB"


def megabytes(size: int) -> int:
    """Bytes in MB, rounded up."""
    return math.ceil(size / 1e6)
