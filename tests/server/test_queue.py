"""The queue and its store: order, ends, cancelling, time, room, and what a stop leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError, OutputError, ServerUnavailableError
from ai_toolkit_inference.pipelines._render import Step
from ai_toolkit_inference.server.errors import (
    FolderInUseError,
    FullQueueError,
    InterruptedRequestError,
)
from ai_toolkit_inference.server.queue import Queue, Work
from ai_toolkit_inference.server.store import Row, Store

STEP = Step(1, 2, lambda: None)
OUTPUTS = [{"id": "x"}]


class Drawing:
    """What a queue draws with: it takes its time until it is let go on."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, row: Row, work: Work) -> list[dict[str, Any]]:
        self.drawn.append(row.id)
        work.start_sample(0, 1)
        self.begun.set()
        while not self.go_on.wait(0.005):
            work.told_step(STEP)
        if error := row.request.get("error"):
            raise error_of(error)
        return OUTPUTS


def error_of(name: str) -> Exception:
    return {"known": InvalidInputError("no"), "unknown": RuntimeError("oh")}[name]


@pytest.fixture
def drawing() -> Drawing:
    return Drawing()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def make(store: Store, drawing: Drawing) -> Iterator[Callable[..., Queue]]:
    """A started queue: make(most=1, timeout=1.0, on_end=...)."""
    queues = []

    def make(most: int = 10, timeout: float = 60.0, **calls: Any) -> Queue:
        queues.append(Queue(store, drawing, most, timeout, **calls))
        queues[-1].start()
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def test_requests_are_drawn_in_order(make, drawing, store) -> None:
    queue = make()
    ends = [queue.add(id, {}) for id in "abc"]
    drawing.begun.wait(5)
    assert [queue.position(id) for id in "abc"] == [None, 0, 1]
    assert [store.get(id).status for id in "abc"] == ["in_progress", "in_queue", "in_queue"]
    assert len(queue) == 2 and queue.is_alive
    drawing.go_on.set()
    rows = [end.result(5) for end in ends]
    assert drawing.drawn == [row.id for row in rows] == ["a", "b", "c"]
    assert {row.status for row in rows} == {"succeeded"} and rows[0].outputs == OUTPUTS
    assert rows[0].created_at <= rows[0].started_at <= rows[0].finished_at
    assert rows[0].created_at.endswith("Z")


def test_progress_is_that_of_what_is_drawn(make, drawing) -> None:
    queue = make()
    queue.add("a", {})
    drawing.begun.wait(5)
    while queue.progress("a")["step"] == 0:
        time.sleep(0.005)
    assert queue.progress("a") == {"index": 0, "samples": 1, "step": 1, "steps": 2, "text": ""}
    assert queue.progress("b") is None


def test_a_failure_is_told_and_the_next_one_is_drawn(make, drawing) -> None:
    queue = make()
    drawing.go_on.set()
    known, unknown, well = (queue.add(id, {"error": id}) for id in ("known", "unknown", ""))
    assert known.result(5).status == "failed"
    assert known.result().error["message"] == "no"
    assert known.result().error["code"] == "invalid_input"
    assert unknown.result(5).error["message"] == "RuntimeError: oh"
    assert unknown.result().error["type"] == "server_error"
    assert well.result(5).status == "succeeded"


def test_what_comes_after_an_end_cannot_stop_the_queue(make, drawing) -> None:
    def fail(_: Row) -> None:
        raise RuntimeError("oh")

    queue = make(on_end=fail)
    drawing.go_on.set()
    assert queue.add("a", {}).result(5).status == "succeeded"
    gone = queue.add("b", {})
    gone.cancel()  # whoever waited has hung up
    assert queue.add("c", {}).result(5).status == "succeeded"


def test_a_state_that_cannot_be_written_is_told_to_whoever_waits(
    make, drawing, store, monkeypatch
) -> None:
    queue, update = make(), store.update

    def full(id: str, **values: Any) -> None:
        if id == "a" and "finished_at" in values:
            raise OutputError("the disk is full")
        update(id, **values)

    monkeypatch.setattr(store, "update", full)
    drawing.go_on.set()
    with pytest.raises(OutputError, match="full"):
        queue.add("a", {}).result(5)
    assert queue.add("b", {}).result(5).status == "succeeded"


def test_canceling(make, drawing, store) -> None:
    queue = make()
    drawn, waits, next = (queue.add(id, {}) for id in "abc")
    drawing.begun.wait(5)
    queue.cancel("b")
    assert waits.result(5).status == "canceled" and store.get("b").started_at is None
    queue.cancel("a")
    assert drawn.result(5).status == "canceled" and drawn.result().error is None
    drawing.go_on.set()
    assert next.result(5).status == "succeeded"
    queue.cancel("c")
    queue.cancel("unknown")
    assert store.get("c").status == "succeeded"
    assert drawing.drawn == ["a", "c"]


def test_time_is_up(make) -> None:
    row = make(timeout=0.05).add("a", {}).result(5)
    assert (row.status, row.error["code"]) == ("failed", "timeout")
    assert "INFERENCE_TIMEOUT" in row.error["message"]


def test_no_more_wait_than_may(make, drawing, store) -> None:
    queue = make(most=1)
    queue.add("a", {})
    drawing.begun.wait(5)
    queue.add("b", {})
    with pytest.raises(FullQueueError, match="1 requests wait"):
        queue.add("c", {})
    assert store.get("c") is None
    queue.cancel("b")
    queue.add("d", {})


def test_a_stop_keeps_what_waits_and_tells_who_waits(make, drawing, store, tmp_path) -> None:
    queue = make()
    drawn, waits = queue.add("a", {}), queue.add("b", {})
    drawing.begun.wait(5)
    queue.close()
    with pytest.raises(InterruptedRequestError):
        drawn.result(5)
    with pytest.raises(ServerUnavailableError, match="after the next start"):
        waits.result(5)
    with pytest.raises(ServerUnavailableError, match="stopping"):
        queue.add("c", {})
    assert [store.get(id).status for id in "ab"] == ["in_progress", "in_queue"]
    drawing.go_on.set()
    again = make()
    assert again.add("d", {}).result(5).status == "succeeded"
    assert store.get("a").error["code"] == "server_restarted"
    assert [store.get(id).status for id in "abd"] == ["failed", "succeeded", "succeeded"]
    assert drawing.drawn == ["a", "b", "d"]


def test_tidying_goes_on_while_nothing_is_there(make, monkeypatch, drawing) -> None:
    tidied = threading.Semaphore(0)

    def tidy() -> None:
        tidied.release()
        raise RuntimeError("oh")

    monkeypatch.setattr("ai_toolkit_inference.server.queue.IDLE", 0.01)
    queue = make(tidy=tidy)
    assert tidied.acquire(timeout=5) and tidied.acquire(timeout=5)
    drawing.go_on.set()
    assert queue.add("a", {}).result(5).status == "succeeded"


def test_one_server_works_with_a_folder(store, tmp_path) -> None:
    with pytest.raises(FolderInUseError, match="another server works with the output folder"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


@pytest.mark.parametrize("broken", ["file", "folder"])
def test_a_folder_that_cannot_be_used_is_told(tmp_path, broken: str) -> None:
    folder = tmp_path / "output"
    if broken == "folder":
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "requests.sqlite3").write_text("no database, but long enough to be one" * 50)
    with pytest.raises(OutputError, match=r"requests\.sqlite3 cannot be used"):
        Store(folder)
    if broken == "file":
        (folder / "requests.sqlite3").unlink()
        Store(folder).close()


def test_pages_are_newest_first(store) -> None:
    for id in "abcd":
        store.add(id, {})
    store.update("b", status="failed")
    assert [row.id for row in store.newest(None, 2, None)] == ["d", "c"]
    assert [row.id for row in store.newest(None, 2, "c")] == ["b", "a"]
    assert [row.id for row in store.newest("in_queue", 9, "d")] == ["c", "a"]
