"""The client of `aitk run` when its connection breaks in the middle of a run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from ai_toolkit_inference.cli.comfy_client import Event, run_workflow
from ai_toolkit_inference.core.errors import ServerUnavailableError


class Proxy:
    """Passes TCP connections on until told to break them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def break_connections(self) -> None:
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.break_connections()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.accepted += 1
                server = socket.create_connection(self.target)
                self.open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(comfy: Any) -> Iterator[Proxy]:
    address = urlsplit(comfy.url)
    proxy = Proxy((address.hostname or "", address.port or 0))
    yield proxy
    proxy.close()


def blurs(color: int) -> dict[str, Any]:
    """Two or three seconds of work on two cores."""
    size = {"width": 1024, "height": 1024, "batch_size": 4, "color": color}
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": size}}
    for index in range(2, 5):
        inputs = {"image": [str(index - 1), 0], "blur_radius": 15, "sigma": 3.0}
        graph[str(index)] = {"class_type": "ImageBlur", "inputs": inputs}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}}
    return graph


def test_broken_connection_is_taken_up_again(proxy: Proxy) -> None:
    broken: list[str] = []

    def break_once(event: Event) -> None:
        if event.kind == "node" and not broken:
            broken.append(event.node)
            proxy.break_connections()

    result = run_workflow(proxy.url, blurs(0x102030), on_event=break_once, timeout=120)

    assert broken == ["1"] and "9" in result.outputs
    assert result.executed_nodes[-1] == "9"


def test_server_that_stays_away(proxy: Proxy) -> None:
    def close(event: Event) -> None:
        if event.kind == "node":
            proxy.close()

    with pytest.raises(ServerUnavailableError, match="no answer from a ComfyUI at"):
        run_workflow(proxy.url, blurs(0x405060), on_event=close, timeout=120)
