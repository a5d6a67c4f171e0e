"""Pictures that nobody waits for any more, or that take too long."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from asking import GENERATIONS, STEPS, finished, flat, newest, running, small, until

openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")


@pytest.fixture
def slow() -> dict[str, Any]:
    """A body that takes longer than any test."""
    return flat(steps=STEPS)


def hang_up(client: httpx.Client, path: str, body: dict[str, Any], seconds: float) -> None:
    with suppress(httpx.ReadTimeout):
        client.post(path, json=body, timeout=seconds)
        raise AssertionError("it was drawn")


def test_who_hangs_up_has_the_request_canceled(client, slow):
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hang_up, client, GENERATIONS, slow, 1.5)
        drawn = running(client)
        second = pool.submit(hang_up, client, GENERATIONS, slow, 0.3)
        waiting = until(lambda: newest(client, status="in_queue"))
        second.result()
        assert finished(client, waiting)["status"] == "canceled"
        assert client.get(f"/v1/requests/{drawn}/status").json()["status"] == "in_progress"
        first.result()
    assert finished(client, drawn)["status"] == "canceled"


def test_others_are_answered_meanwhile(client, slow):
    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(hang_up, client, GENERATIONS, slow, 1)
        drawn = running(client)
        began = time.monotonic()
        assert client.get("/health").status_code == 200
        assert time.monotonic() - began < 0.5 and not left.done()
    assert finished(client, drawn)["status"] == "canceled"


@pytest.mark.parametrize("partial", [0, 1])
def test_who_leaves_a_stream_has_the_request_canceled(client, slow, partial):
    body = slow | {"stream": True, "partial_images": partial}
    with client.stream("POST", GENERATIONS, json=body) as answer:
        id = answer.headers["x-request-id"]
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert finished(client, id)["status"] == "canceled"


def test_a_request_that_another_one_cancels_is_not_sent_again(images, client, slow):
    def cancel() -> None:
        client.post(f"/v1/requests/{running(client)}/cancel").raise_for_status()

    with ThreadPoolExecutor(1) as pool:
        canceled = pool.submit(cancel)
        with pytest.raises(openai.APIStatusError) as stopped:
            images.generate(model="sd15", **small(steps=STEPS))
        canceled.result()
    assert (stopped.value.status_code, stopped.value.code) == (499, "cancelled")


def test_what_takes_too_long_is_given_up(serve, speak, tmp_path):
    with (
        serve(tmp_path, timeout="1") as server,
        pytest.raises(openai.InternalServerError) as late,
    ):
        speak(server.url).generate(model="sd15", **small(steps=STEPS))
    assert (late.value.status_code, late.value.code) == (504, "timeout")
