"""An https server on this machine with a throwaway certificate authority, and downloads from it."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from ai_toolkit_inference.core.errors import DownloadError
from ai_toolkit_inference.engine._http import Network, is_public
from ai_toolkit_inference.engine.downloads import fetch_adapter

HOSTS = ("hub.test", "files.test", "inner.test")
SETTINGS = ("HF_ENDPOINT", "HF_TOKEN", "AITK_MAX_DOWNLOAD_BYTES", "AITK_DOWNLOAD_SECONDS")
Page = Callable[[Any], Any]  # what a path answers, given the handler of the request


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        host = self.headers["Host"].split(":")[0]
        request = SimpleNamespace(host=host, path=self.path, headers=self.headers)
        self.server.seen.append(request)
        self.server.pages.get(self.path.split("?")[0], Site.answer(404))(self)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """What is where (path -> page), and the requests that came.

    data, sha, name: a LoRA, its checksum, and the name it has to get.
    """

    daemon_threads = True
    block_on_close = False
    data = save({"lora": np.random.default_rng(0).random(50_000, np.float32)})  # 200 kB
    sha = hashlib.sha256(data).hexdigest()
    name = f"style-{sha[:12]}.safetensors"

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.pages: dict[str, Page] = {"/style.safetensors": self.file()}
        self.seen: list[SimpleNamespace] = []

    def url(self, path: str = "style.safetensors", host: str = "files.test") -> str:
        return f"https://{host}:{self.server_address[1]}/{path}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests

    @staticmethod
    def answer(status: int, body: bytes = b"", **headers: object) -> Page:
        def page(handler: Any) -> None:
            handler.head(status, Content_Length=len(body), **headers)
            handler.wfile.write(body)

        return page

    @classmethod
    def file(
        cls,
        data: bytes | None = None,
        etag: str | None = '"v1"',
        cut: int | None = None,
        ranges: bool = True,
    ) -> Page:
        """Serves data; cut: hangs up after so many bytes of each answer."""
        data = cls.data if data is None else data

        def page(handler: Any) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
            same = ranges and handler.headers["If-Range"] == etag
            start = int(wanted[1]) if wanted and same else 0
            headers = {"ETag": etag} if etag else {}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            handler.head(206 if start else 200, Content_Length=len(data) - start, **headers)
            handler.wfile.write(data[start:][:cut])

        return page

    @staticmethod
    def unsized(data: bytes) -> Page:
        """Serves data without saying how much it is."""

        def page(handler: Any) -> None:
            handler.head(200, ETag='"v1"')
            handler.wfile.write(data)

        return page

    @staticmethod
    def in_turn(*pages: Page) -> Page:
        """Another page for each request; the last one stays."""
        left = list(pages)
        return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


@pytest.fixture(scope="session")
def authority() -> Any:
    import trustme

    return trustme.CA()


@pytest.fixture
def site(authority, monkeypatch):
    """A server of files.test, hub.test and inner.test, with a LoRA at /style.safetensors."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(tls)
    site = Site(tls)
    threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
    yield site
    site.close()


@pytest.fixture
def naps() -> list[float]:
    """The seconds that were waited, in simulation."""
    return []


@pytest.fixture
def network(authority, naps) -> Network:
    """Every name is this machine, which is allowed here beside public addresses."""
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return Network(
        resolve=lambda host, port: ["127.0.0.1"],
        is_allowed=lambda address: address == "127.0.0.1" or is_public(address),
        ports=range(1, 65536),
        tls=lambda: tls,
        proxy=lambda host: None,
        sleep=naps.append,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where downloads are kept; it is not there yet."""
    return tmp_path / "aitk_downloads"


@pytest.fixture
def parts(folder) -> Callable[[], list[Path]]:
    """The files that are not whole."""
    return lambda: list(folder.glob(".partial/*.part"))


@pytest.fixture
def said() -> list[str]:
    """What downloads reported."""
    return []


@pytest.fixture
def fetch(site, folder, network, said) -> Callable[..., Path]:
    """fetch(path or link) -> file."""

    def fetch(link: str = "style.safetensors", on_status=said.append, network=network, **limits):
        link = link if "://" in link else site.url(link)
        return fetch_adapter(link, folder, on_status, network=network, **limits)

    return fetch


@pytest.fixture
def fails(fetch, folder) -> Callable[..., str]:
    """The message of a download that has to fail and to leave no file behind."""

    def fails(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(DownloadError) as caught:
            fetch(*args, **kwargs)
        assert not list(folder.glob("*.safetensors"))
        return str(caught.value)

    return fails
