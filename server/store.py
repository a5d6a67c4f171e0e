"""The list of requests and the server's LoRAs, in a SQLite file: they outlive the server."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.errors import OutputError
from .errors import FolderInUseError

WAITING, RUNNING = "in_queue", "in_progress"
SUCCEEDED, FAILED, CANCELED = "succeeded", "failed", "canceled"
FINISHED = (SUCCEEDED, FAILED, CANCELED)
STATUSES = (WAITING, RUNNING, *FINISHED)
TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL,
    created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
    request TEXT NOT NULL, outputs TEXT, error TEXT)
"""
LORA_TABLE = "CREATE TABLE IF NOT EXISTS loras (model TEXT PRIMARY KEY, state TEXT NOT NULL)"


@dataclass(frozen=True)
class Row:
    """A request as it stands.

    request: its body as JSON with nothing left open; control images are names of files beside the
    outputs. outputs: what was drawn so far. error: as errors.body_of gives it.
    """

    id: str
    status: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    request: dict[str, Any]
    outputs: list[dict[str, Any]] | None
    error: dict[str, Any] | None


JSON_COLUMNS = ("request", "outputs", "error")
COLUMNS = tuple(Row.__dataclass_fields__)


class Store:
    """Requests by id, oldest first. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        file = folder / "requests.sqlite3"
        # one server draws what a folder holds; released by whatever thread closes it
        self._in_use = FileLock(folder / "requests.lock", timeout=0, thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._in_use.acquire()
            self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(TABLE)
            self._connection.execute(LORA_TABLE)
        except Timeout as error:
            raise FolderInUseError(
                f"another server works with the output folder {folder}; end it, or give this one a "
                "folder of its own (--output-folder, OUTPUT_BASE_PATH)"
            ) from error
        except (OSError, sqlite3.Error) as error:
            self._in_use.release()
            raise OutputError(f"{file} cannot be used: {error}; check the folder") from error

    def add(self, id: str, request: dict[str, Any]) -> None:
        """A new request, at the end of the queue."""
        values = (id, WAITING, now(), json.dumps(request))
        names = "id, status, created_at, request"
        self._run(f"INSERT INTO requests ({names}) VALUES (?, ?, ?, ?)", values)

    def update(self, id: str, **values: Any) -> None:
        """Writes these columns of a request."""
        names = ", ".join(f"{name} = ?" for name in values)
        texts = (json.dumps(x) if name in JSON_COLUMNS else x for name, x in values.items())
        self._run(f"UPDATE requests SET {names} WHERE id = ?", (*texts, id))

    def get(self, id: str) -> Row | None:
        """The request of an id."""
        return next(iter(self._rows("WHERE id = ?", (id,))), None)

    def with_status(self, *statuses: str) -> list[Row]:
        """All requests of these statuses, oldest first."""
        marks = ", ".join("?" * len(statuses))
        return self._rows(f"WHERE status IN ({marks}) ORDER BY number", statuses)

    def newest(self, status: str | None, most: int, after: str | None) -> list[Row]:
        """At most so many, newest first; after: the id of the last one of the page before."""
        where, values = ["1"], []
        if status:
            where, values = [*where, "status = ?"], [*values, status]
        if after:
            where.append("number < (SELECT number FROM requests WHERE id = ?)")
            values.append(after)
        return self._rows(
            f"WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?", (*values, most)
        )

    def finished_before(self, hours: float) -> list[Row]:
        """Requests that were finished more than so many hours ago."""
        return self._rows("WHERE finished_at < ?", (now(-timedelta(hours=hours)),))

    def remove(self, id: str) -> None:
        """Forgets a request."""
        self._run("DELETE FROM requests WHERE id = ?", (id,))

    def loras(self) -> dict[str, str]:
        """What keep_loras was last given for each model."""
        return dict(self._run("SELECT model, state FROM loras", ()))

    def keep_loras(self, model: str, state: str) -> None:
        """Keeps the LoRAs of a model, as lora_set writes them."""
        self._run("INSERT OR REPLACE INTO loras (model, state) VALUES (?, ?)", (model, state))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()
            self._in_use.release()

    def _rows(self, rest: str, values: Iterable[Any]) -> list[Row]:
        found = self._run(f"SELECT {', '.join(COLUMNS)} FROM requests {rest}", tuple(values))
        return [Row(*map(_value, COLUMNS, row)) for row in found]

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(
                f"the list of requests cannot be used: {error}; check the output folder and its "
                "free space"
            ) from error


def now(later: timedelta = timedelta()) -> str:
    """The time in UTC, as ISO 8601 with milliseconds."""
    text = (datetime.now(timezone.utc) + later).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _value(name: str, value: Any) -> Any:
    return json.loads(value) if name in JSON_COLUMNS and value is not None else value
