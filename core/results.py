"""What comes back from the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleResult:
    """One rendered sample.

    frames: uint8 array (F, H, W, 3), RGB; F is 1 for a still image.
    fps: frames per second for F > 1. audio: (channels, samples) float array at audio_rate Hz.
    info: JSON-ready record of everything that decided the picture.
    """

    frames: Any
    fps: float
    info: dict[str, Any]
    audio: Any = None
    audio_rate: int = 0
