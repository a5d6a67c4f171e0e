"""What tests of the native API share: small requests, waiting for them, and what a refusal is."""

from __future__ import annotations

import time
from typing import Any

SMALL = {"width": 64, "height": 64, "sample_steps": 1}
LONG = SMALL | {"sample_steps": 900}


def body(**fields: Any) -> dict[str, Any]:
    """A small request; prompt fields may be given as `prompts`."""
    return {"model": "sd15", "prompts": [SMALL], "output_format": "png"} | fields


def send(client: Any, **fields: Any) -> str:
    taken = client.post("/v1/inference", json=body(**fields))
    assert taken.status_code == 200, taken.text
    assert taken.json()["status"] in ("in_queue", "in_progress")
    assert taken.headers["x-request-id"] == taken.json()["request_id"]
    return taken.json()["request_id"]


def status(client: Any, id: str) -> dict[str, Any]:
    return client.get(f"/v1/requests/{id}/status").json()


def wait(client: Any, id: str, *until: str) -> dict[str, Any]:
    """The result, once the request has a status, or is finished."""
    until = until or ("succeeded", "failed", "canceled")
    deadline = time.monotonic() + 60
    while status(client, id)["status"] not in until:
        assert time.monotonic() < deadline, status(client, id)
        time.sleep(0.02)
    return client.get(f"/v1/requests/{id}/result").json()


def files(client: Any, result: dict[str, Any]) -> list[bytes]:
    assert result["status"] == "succeeded", result["error"]
    return [client.get(output["url"]).content for output in result["outputs"]]


def refused(answer: Any, status: int, code: str, message: str) -> None:
    """The answer is an error, in both shapes."""
    assert answer.status_code == status, answer.text
    error, detail = answer.json()["error"], answer.json()["detail"]["error"]
    assert (error["code"], detail["code"]) == (code, code.upper())
    assert message in error["message"] == detail["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
