"""What tests of the Images API share: small requests, pictures, and waiting for what comes."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

PROMPT = "a photo of cat"
STEPS = 900  # they take longer than any test waits
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def small(size: str = "64x64", **extra: Any) -> dict[str, Any]:
    """Arguments of a picture that is drawn in no time; extra: fields that OpenAI has not."""
    return {"prompt": PROMPT, "size": size, "extra_body": {"steps": 2, "dtype": "fp32"} | extra}


def flat(model: str = "sd15", **fields: Any) -> dict[str, Any]:
    """The same as a body."""
    given = small()
    return {"model": model, **given.pop("extra_body"), **given, **fields}


def png(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_address(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def content(*pictures: Any) -> list[bytes]:
    return [base64.b64decode(one.b64_json) for one in pictures]


def until(holds: Callable[[], Any]) -> Any:
    """What it gives once that is something."""
    end = time.monotonic() + 30
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return found


def finished(client: Any, id: str) -> dict[str, Any]:
    """A request once it is finished."""
    told: dict[str, Any] = {}
    until(
        lambda: told.update(client.get(f"/v1/requests/{id}/result").json()) or told["finished_at"]
    )
    return told


def newest(client: Any, **where: str) -> str:
    """The id of the last request, "" if there is none. where: e.g. its status."""
    rows = client.get("/v1/requests", params={"limit": 1} | where).json()["requests"]
    return rows[0]["request_id"] if rows else ""


def running(client: Any) -> str:
    """The id of the request that is drawn, once one is."""
    return until(lambda: newest(client, status="in_progress"))
