"""The one queue: requests are drawn one after the other by a thread, and can be stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.errors import AitkError, CancelledError, ServerUnavailableError
from ..pipelines._render import Step
from .errors import FullQueueError, InterruptedRequestError, TimeoutReachedError, body_of
from .store import CANCELED, FAILED, RUNNING, SUCCEEDED, WAITING, Row, Store, now

log = logging.getLogger("ai_toolkit_inference")
INTERRUPTED = "the server was stopped while it drew the request; send it again"
IDLE = 600.0  # seconds


@dataclass
class Progress:
    """How far a request is. index: of the sample that is drawn; step 0 is before the first."""

    index: int = 0
    samples: int = 0
    step: int = 0
    steps: int = 0
    text: str = ""


@dataclass
class Work:
    """A request that waits or is drawn; what draws it calls its methods and is stopped by them."""

    id: str
    timeout: float
    progress: Progress = field(default_factory=Progress)
    canceled: bool = False
    deadline: float = 0.0
    finished: Future[Row] = field(default_factory=Future)
    on_step: Callable[[Step], None] | None = None

    def start_sample(self, index: int, samples: int) -> None:
        """Says which sample comes now."""
        self.progress = Progress(index, samples)

    def told_step(self, step: Step) -> None:
        """Says that a step of it is done. Raises CancelledError or TimeoutReachedError."""
        self.progress.step, self.progress.steps, self.progress.text = step.index, step.total, ""
        self._check()
        if self.on_step is not None:
            self.on_step(step)

    def told_status(self, text: str) -> None:
        """Says what is done beside steps, and raises as told_step does."""
        self.progress.text = text
        self._check()

    def _check(self) -> None:
        if self.canceled:
            raise CancelledError("the request was canceled")
        if time.monotonic() > self.deadline:
            raise TimeoutReachedError(
                f"the request took more than {self.timeout:g} seconds; ask for fewer samples, or "
                "start the server with a larger INFERENCE_TIMEOUT"
            )


class Queue:
    """Draws requests of a store in their order.

    draw: (row, work) -> outputs; it may write outputs that are there before it ends.
    on_end: told of every request that was finished. tidy: called now and then while none is there.
    """

    def __init__(
        self,
        store: Store,
        draw: Callable[[Row, Work], list[dict[str, Any]]],
        most: int,
        timeout: float,
        on_end: Callable[[Row], None] = lambda _: None,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._draw, self._most, self._timeout = store, draw, most, timeout
        self._on_end, self._tidy = on_end, tidy
        self._condition = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._running: Work | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="aitk-queue", daemon=True)

    def start(self) -> None:
        """Takes up what the store holds from before, and begins."""
        error = InterruptedRequestError(INTERRUPTED)
        for row in self._store.with_status(RUNNING):
            said = body_of(error)["error"]
            self._store.update(row.id, status=FAILED, finished_at=now(), error=said)
        self._waiting.extend(
            Work(row.id, self._timeout) for row in self._store.with_status(WAITING)
        )
        self._thread.start()

    def check_room(self) -> None:
        """Raises FullQueueError if no more may wait."""
        if len(self._waiting) >= self._most:
            raise FullQueueError(
                f"{len(self._waiting)} requests wait, as many as may; try again in a while"
            )

    def add(
        self,
        id: str,
        request: dict[str, Any],
        on_step: Callable[[Step], None] | None = None,
    ) -> Future[Row]:
        """What ends with the request's last state. on_step: called while it is drawn."""
        work = Work(id, self._timeout, on_step=on_step)
        with self._condition:
            if self._closed:
                raise ServerUnavailableError("the server is stopping; try again in a while")
            self.check_room()
            self._store.add(id, request)
            self._waiting.append(work)
            self._condition.notify()
        return work.finished

    def cancel(self, id: str) -> None:
        """Takes a request out of the queue, or stops it within a step; of others nothing."""
        with self._condition:
            if self._running is not None and self._running.id == id:
                self._running.canceled = True
            work = next((one for one in self._waiting if one.id == id), None)
            if work is not None:
                self._waiting.remove(work)
        if work is not None:
            self._end(work, CANCELED, error=None)

    def progress(self, id: str) -> dict[str, Any] | None:
        """How far a request is that is drawn now."""
        work = self._running
        return asdict(work.progress) if work is not None and work.id == id else None

    def position(self, id: str) -> int | None:
        """How many are drawn before a request that waits: 0 is the next."""
        with self._condition:
            ids = [work.id for work in self._waiting]
        return ids.index(id) if id in ids else None

    @property
    def is_alive(self) -> bool:
        """Whether requests are drawn."""
        return self._thread.is_alive()

    def __len__(self) -> int:
        return len(self._waiting)

    def stop(self) -> None:
        """Stops what is drawn, which will be said to have been interrupted; what waits is kept."""
        with self._condition:
            self._closed = True
            if self._running is not None:
                self._running.canceled = True
            self._condition.notify()
            waiting, running = [*self._waiting], self._running
        for work in waiting:
            text = "the server is stopping; the request is kept, and drawn after the next start"
            _resolve(work, ServerUnavailableError(text))
        if running is not None:
            _resolve(running, InterruptedRequestError(INTERRUPTED))

    def close(self) -> None:
        """The same, and waits for it."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            self._do(work)

    def _next(self) -> Work | None:
        with self._condition:
            self._running = None
            while not self._condition.wait_for(lambda: self._waiting or self._closed, IDLE):
                self._safely(self._tidy)
            if self._closed:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _do(self, work: Work) -> None:
        work.deadline = time.monotonic() + self._timeout
        try:
            self._store.update(work.id, status=RUNNING, started_at=now())
            row = self._store.get(work.id)
            assert row is not None
            outputs = self._draw(row, work)
        except CancelledError:
            if self._closed:
                return  # it stays in progress, and the next start says what became of it
            self._end(work, CANCELED, error=None)
        except AitkError as error:
            self._end(work, FAILED, error=body_of(error)["error"])
        except Exception as error:  # the next request must be drawn all the same
            log.error("request %s failed", work.id, exc_info=error)
            said = AitkError(f"{type(error).__name__}: {error}")
            self._end(work, FAILED, error=body_of(said)["error"])
        else:
            self._end(work, SUCCEEDED, outputs=outputs)

    def _end(self, work: Work, status: str, **values: Any) -> None:
        try:
            self._store.update(work.id, status=status, finished_at=now(), **values)
            row = self._store.get(work.id)
            assert row is not None
        except Exception as error:  # a full disk; whoever waits must know
            log.error("the state of request %s is lost", work.id, exc_info=error)
            _resolve(work, error)
            return
        self._safely(lambda: self._on_end(row))
        _resolve(work, row)

    def _safely(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # the next request must be drawn all the same
            log.error("tidying up failed", exc_info=error)


def _resolve(work: Work, end: Row | Exception) -> None:
    with suppress(InvalidStateError):  # it was, when the server began to stop
        if isinstance(end, Exception):
            work.finished.set_exception(end)
        else:
            work.finished.set_result(end)
