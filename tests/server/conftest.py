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
        from ai_toolkit_inference.server.app import create_app
        from ai_toolkit_inference.server.listening import Listener, open_socket

        app = create_app(settings)
        self.service = app.state.service
        self._server, socket = Listener(app), open_socket(settings.host, 0)
        self.url = f"http://{settings.host}:{socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [socket]})
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.02)

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


@pytest.fixture(scope="module")
def put(server: Any, lora: Callable[..., Path]) -> Callable[..., str]:
    """Puts a random LoRA into that server's folder: put("sd15", seed=1) is its name there."""
    import shutil

    def put(model: str = "sd15", seed: int = 0) -> str:
        file = server.service.settings.lora_folder / lora(model, seed).name
        if not file.exists():
            shutil.copy(lora(model, seed), file)
        return file.name

    return put


@pytest.fixture(scope="module")
def speak(server: Any) -> Callable[..., Any]:
    """OpenAI's client for pictures of a server; it checks every answer against its types."""
    openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")

    def speak(url: str = server.url, key: str = "none-is-needed") -> Any:
        return openai.OpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=0, _strict_response_validation=True
        ).images

    return speak


@pytest.fixture(scope="module")
def images(speak: Callable[..., Any]) -> Any:
    """The same of that server."""
    return speak()
