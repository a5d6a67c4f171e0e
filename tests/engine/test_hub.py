"""Repositories of a Hugging Face of our own, over http: told of, stopped, continued, refused."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

from ai_toolkit_inference import Engine, get_model, list_models
from ai_toolkit_inference.core.errors import CheckpointError
from ai_toolkit_inference.engine._hub import VARIANTS, fetch_repository
from ai_toolkit_inference.engine.weights import fetch_elsewhere, find_weights, tiny_folder

COMMIT = "c" * 40
NEEDED = ("model_index.json", "tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors")
LEFT_OUT = (
    "sd.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
)


class Stopped(Exception):
    """What an on_status raises here."""


class Hub(ThreadingHTTPServer):
    """repositories: name -> file -> bytes. pause: seconds before each part of a file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.pause, self.sent = 0.0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that are ended are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/.*|/revision/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        found = api or file
        files = self.server.repositories.get(found[1]) if found else None
        if files is None:
            code = "RepoNotFound" if found else "EntryNotFound"
            self.answer(404, b"{}", {"X-Error-Code": code})
        elif api and "/tree/" in path:
            self.answer(200, json.dumps([entry(*item) for item in files.items()]).encode())
        elif api:
            self.answer(200, json.dumps(info(api[1], files)).encode())
        elif file and file[2] in files:
            self.send_file(files[file[2]])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def send_file(self, data: bytes) -> None:
        range_ = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(range_[1]) if range_ else 0
        headers = {"ETag": f'"{sha(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, data[start:], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), 1 << 16) if self.command == "GET" else ():
            time.sleep(self.server.pause if len(body) > 1 << 16 else 0)
            self.wfile.write(body[start : start + (1 << 16)])
            self.server.sent += 1 << 16

    def log_message(self, format: str, *args: object) -> None:
        pass


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(path: str, data: bytes) -> dict:
    lfs = {"oid": sha(data), "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(data), "oid": sha(data)[:40], "lfs": lfs}


def info(repository: str, files: dict[str, bytes]) -> dict:
    siblings = [
        {
            "rfilename": path,
            "size": len(data),
            "blobId": sha(data)[:40],
            "lfs": {"sha256": sha(data), "size": len(data), "pointerSize": 130},
        }
        for path, data in files.items()
    ]
    return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has the tiny sd15 as the real one has it, and an empty cache."""
    hub = Hub()
    spec = get_model("sd15")
    folder = tiny_folder(spec)
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    hub.repositories[spec.repo_id] = files | {name: b"not wanted" for name in LEFT_OUT}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


def large(hub: Hub, size: int = 60_000_000) -> str:
    """A repository with one large file that comes slowly."""
    hub.repositories["o/large"] = {"model.safetensors": bytes(size)}
    hub.pause = 0.004
    return "o/large"


def test_a_model_of_the_hub_draws_as_the_local_one(hub, ask, tmp_path) -> None:
    said: list[str] = []
    drawn = Engine("cpu").sample(ask(weights="huggingface"), on_status=said.append).frames
    assert np.array_equal(drawn, Engine("cpu").sample(ask()).frames)
    (snapshot,) = (tmp_path / "hub").glob("models--*/snapshots/*")
    assert all((snapshot / name).is_file() for name in NEEDED)
    assert not any((snapshot / name).exists() for name in LEFT_OUT)
    assert f"Fetching {get_model('sd15').repo_id}" in said


def test_a_download_tells_bytes_and_speed(hub) -> None:
    said: list[str] = []
    folder = fetch_repository(large(hub), ["*.safetensors"], said.append)
    assert (folder / "model.safetensors").stat().st_size == 60_000_000
    told = [re.fullmatch(r"Downloading o/large (\d+)/60 MB(, .* MB/s)?", text) for text in said]
    amounts = [int(found[1]) for found in told if found]
    assert len(amounts) > 3 and amounts == sorted(amounts)
    assert any(found and found[2] for found in told)


def test_a_download_is_stopped_at_once_and_continued(hub) -> None:
    def stop(text: str) -> None:
        if text.startswith("Downloading"):
            raise Stopped

    repository = large(hub)
    with pytest.raises(Stopped):
        fetch_repository(repository, ["*.safetensors"], stop)
    before = hub.sent
    time.sleep(0.5)
    assert hub.sent - before < 1_000_000  # what was on its way
    assert before < 50_000_000
    hub.pause = 0
    folder = fetch_repository(repository, ["*.safetensors"], print)
    assert (folder / "model.safetensors").read_bytes() == bytes(60_000_000)


def test_parts_that_lie_elsewhere_are_fetched_before_loading(hub, tmp_path) -> None:
    repository = "ai-toolkit/umt5_xxl_encoder"
    hub.repositories[repository] = {
        "text_encoder/model.safetensors": b"a",
        "tokenizer/tokenizer.json": b"{}",
        "text_encoder/pytorch_model.bin": b"b",
    }
    snapshot = tmp_path / "snapshots" / "1"
    fetch_elsewhere(get_model("wan21_1b"), snapshot, print)
    (fetched,) = (tmp_path / "hub").glob("models--ai-toolkit--*/snapshots/*")
    names = {file.name for file in fetched.rglob("*.*")}
    assert names == {"model.safetensors", "tokenizer.json"}


def test_a_released_file_is_fetched_whatever_it_is_called(hub) -> None:
    spec = get_model("ltx2.3")
    hub.repositories[spec.repo_id] = {spec.released_file: b"weights", "other.safetensors": b"no"}
    path, _ = find_weights(spec, "huggingface", print)
    assert path.name == spec.released_file and path.read_bytes() == b"weights"
    assert [file.name for file in path.parent.iterdir()] == [spec.released_file]


@pytest.mark.parametrize(
    "spec", [spec for spec in list_models() if not spec.released_file], ids=lambda spec: spec.id
)
def test_all_that_a_model_is_loaded_from_is_fetched(spec, monkeypatch, tmp_path) -> None:
    """Of a repository like the tiny one; not the parts that the trainer takes from elsewhere."""
    folder = tiny_folder(spec)
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    fetched: set[str] = set()

    def fetch(_repository, allow, _on_status):
        chosen = filter_repo_objects(files, allow_patterns=allow, ignore_patterns=VARIANTS)
        fetched.update(chosen)
        return folder

    monkeypatch.setattr("ai_toolkit_inference.engine.weights.fetch_repository", fetch)
    monkeypatch.setenv("AITK_CACHE", str(tmp_path))
    find_weights(spec, "huggingface", print)
    elsewhere = [part for part, _ in spec.elsewhere]
    assert fetched >= {file for file in files if file.split("/")[0] not in elsewhere}


def test_a_repository_that_is_not_there_is_named_with_the_cure(hub, ask) -> None:
    with pytest.raises(CheckpointError, match=r"FLUX\.1-dev could not be fetched") as refusal:
        Engine("cpu").sample(ask("flux", weights="huggingface"))
    assert "HF_TOKEN" in str(refusal.value)
    assert "Traceback" not in str(refusal.value)


def test_a_program_that_cannot_start_says_why(hub, monkeypatch, tmp_path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import there_is_no_such_package")
    monkeypatch.setattr("ai_toolkit_inference.engine._hub.PROGRAM", Path(broken))
    with pytest.raises(Exception, match="No module named 'there_is_no_such_package'"):
        fetch_repository("o/any", ["*"], print)
