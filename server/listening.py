"""The server on its port: it says when it listens, and stops within a step."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from ..core.errors import InvalidInputError

PATIENCE = 10  # seconds that answers under way have to end


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InvalidInputError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInputError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; end what listens "
            "there, or choose another --host or --port"
        ) from error


class Listener(uvicorn.Server):
    """Serves an application of create_app.

    on_start: called once it answers.
    """

    def __init__(
        self, app: FastAPI, log_level: str = "warning", on_start: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=PATIENCE)
        )
        self._queue, self._on_start = app.state.service.queue, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops drawing, tells whoever waits for a picture, then stops answering."""
        self._queue.stop()
        while self._queue.is_alive and not self.force_exit:  # a second Ctrl-C
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
