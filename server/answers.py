"""What the native API answers, for its description; the routes make it themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from .errors import ErrorText
from .schemas import InferenceRequest
from .store import STATUSES


class ProgressAnswer(BaseModel):
    """How far a request is that is drawn."""

    index: int = Field(description="of the sample that is drawn, from 0")
    samples: int
    step: int = Field(description="the last one done; 0 is before the first")
    steps: int
    text: str = Field(description="what is done beside steps, as loading")


class StatusAnswer(BaseModel):
    """How a request stands."""

    request_id: str
    status: Literal[STATUSES]  # type: ignore[valid-type]
    model: str
    status_url: str
    result_url: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: ErrorText | None
    position: int | None = Field(None, description="how many are drawn before; 0 is the next")
    progress: ProgressAnswer | None = None


class OutputAnswer(BaseModel):
    """A picture or clip."""

    id: str
    format: str
    width: int
    height: int
    num_frames: int | None = None
    fps: float | None = None
    seed: int
    file_path: str = Field(description="on the server's machine")
    url: str = Field(description="if keys are asked for: without one, for an hour")
    info: dict[str, Any] = Field(description="everything that decided it")


class ResultAnswer(StatusAnswer):
    """How a request stands, and what was drawn so far."""

    outputs: list[OutputAnswer] | None
    metadata: InferenceRequest


class ListAnswer(BaseModel):
    """A page of requests."""

    requests: list[StatusAnswer]
    has_more: bool


def described(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description of a route's answer."""
    return {200: {"model": model}}
