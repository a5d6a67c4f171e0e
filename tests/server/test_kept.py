"""What outlives a stop, what is forgotten, and what happens when time, room or disk run out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_calls import LONG, body, files, refused, send, wait

from ai_toolkit_inference.server.store import Store


@pytest.fixture
def short(serve: Callable[..., Any], tmp_path: Path) -> Any:
    """A client of a server that lets one request wait, and draws each for five seconds at most."""
    import httpx

    with (
        serve(tmp_path, timeout="5", max_queue="1", keep_hours="1") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def test_a_full_queue_and_a_time_that_is_up(short: Any) -> None:
    drawn = send(short, prompts=[LONG] * 9)
    wait(short, drawn, "in_progress")
    waits = send(short)
    answer = short.post("/v1/inference", json=body())
    refused(answer, 429, "queue_full", "1 requests wait")
    assert int(answer.headers["retry-after"]) > 0 and "x-should-retry" not in answer.headers
    result = wait(short, drawn)
    assert (result["status"], result["error"]["code"]) == ("failed", "timeout")
    assert wait(short, waits)["status"] == "succeeded"


def test_what_is_old_is_forgotten_with_its_files(short: Any, tmp_path: Path) -> None:
    old = send(short)
    (output,) = wait(short, old)["outputs"]
    kept = wait(short, send(short))
    set_back(tmp_path / "output", old)
    wait(short, send(short))
    refused(short.get(f"/v1/requests/{old}/status"), 404, "request_not_found", "older than 1 hours")
    assert short.get(output["url"]).status_code == 404
    assert not list((tmp_path / "output").glob(f"{old}*"))
    assert short.get(kept["outputs"][0]["url"]).status_code == 200


def set_back(folder: Path, id: str) -> None:
    """Makes a request one that was finished long ago."""
    import sqlite3

    with sqlite3.connect(folder / "requests.sqlite3") as connection:
        connection.execute("UPDATE requests SET finished_at = '2000' WHERE id = ?", (id,))


def test_a_stop_and_a_start(serve: Callable[..., Any], tmp_path: Path) -> None:
    import httpx

    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        done = send(client)
        expected = files(client, wait(client, done))
        drawn, waits = send(client, prompts=[LONG]), send(client)
        wait(client, drawn, "in_progress")
    half, new = (tmp_path / "output" / f".{number}.part.png" for number in range(2))
    for file in (half, new):
        file.write_bytes(b"half")
    os.utime(half, (0, 0))
    started = time.monotonic()
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert time.monotonic() - started < 30
        assert not half.exists() and new.exists()
        assert files(client, wait(client, waits)) == expected
        result = wait(client, drawn)
        assert (result["status"], result["error"]["code"]) == ("failed", "server_restarted")
        assert files(client, client.get(f"/v1/requests/{done}/result").json()) == expected
    Store(tmp_path / "output").close()  # nobody works with the folder any more


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_fails_the_request_and_leaves_nothing(
    client: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if ".part" not in path.name:
            return before(path, mode, *args, **kwargs)
        path.touch()
        return Path("/dev/full").open(mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        id = send(client)
        result = wait(client, id)
    assert (result["status"], result["error"]["code"]) == ("failed", "output_failed")
    assert "No space left on device" in result["error"]["message"]
    folder = server.service.settings.output_folder
    assert not [*folder.glob(f"{id}*"), *folder.glob(".*.part*")]
    assert wait(client, send(client))["status"] == "succeeded"
