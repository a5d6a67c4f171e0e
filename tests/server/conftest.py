"""A real server on a free port, with tiny weights, for each test file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed (extra `server`)")


class Server:
    """A server that listens. url: its address. service: what its routes stand on."""

    def __init__(self, settings: Any) -> None:
        import uvicorn

        from ai_toolkit_inference.server.app import create_app

        app = create_app(settings)
        self.service = app.state.service
        config = uvicorn.Config(app, settings.host, port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://{settings.host}:{port}"

    def stop(self) -> None:
        """Stops as on Ctrl-C."""
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """A context with a Server in a folder: `with serve(folder, max_queue="1") as server`.

    Keywords are settings by field, as texts. folder/loras is its LoRA folder, folder/output its
    output folder.
    """
    from ai_toolkit_inference.server.settings import Settings

    @contextmanager
    def serve(folder: Path, **texts: str) -> Iterator[Server]:
        (folder / "loras").mkdir(exist_ok=True)
        usual = {
            "device": "cpu",
            "weights": "tiny",
            "lora_folder": str(folder / "loras"),
            "output_folder": str(folder / "output"),
        }
        server = Server(Settings().with_texts(usual | texts))
        try:
            yield server
        finally:
            server.stop()

    return serve


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server for the tests of a file, with the usual settings."""
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    """An httpx client of that server."""
    import httpx

    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
