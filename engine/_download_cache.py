"""The folder of fetched LoRA files: whole ones, partial ones, their index, and who may write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # a dependency of huggingface_hub in every version
from safetensors import SafetensorError, safe_open

from ..core.errors import DownloadError
from ._links import Link

PARTIAL = ".partial"
LOCK_SECONDS = 0.5  # between two reports while another process downloads
BLOCK = 1 << 20


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the file system raises into a DownloadError that names the folder."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter where locks are unknown
        raise DownloadError(
            f"{folder} cannot be used: {error}; make room or choose another folder. What has come "
            "is kept: ask again to continue"
        ) from error


class Partial:
    """A file that is not whole yet, and notes on what its server said of it.

    Notes: url (shown), name, size and sha256 (None if unknown), validator (ETag or date, or None).
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / f"{key}.part"
        self._notes = folder / f"{key}.json"

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def offset(self) -> int:
        """Where to continue: 0 unless the server can be asked for the rest of the same file."""
        return self.size if self.notes().get("validator") else 0

    def notes(self) -> dict[str, Any]:
        return _read_json(self._notes)

    def start(self, notes: dict[str, Any]) -> None:
        self.drop()
        _write_json(self._notes, notes)

    @contextmanager
    def writer(self) -> Iterator[Callable[[bytes], None]]:
        """Appends; what was given is in the file afterwards, also if the block was left early."""
        with disk_errors(self.path.parent):
            file = open(self.path, "ab", buffering=BLOCK)  # noqa: SIM115

        def write(data: bytes) -> None:
            with disk_errors(self.path.parent):
                file.write(data)

        try:
            yield write
        finally:
            with disk_errors(self.path.parent):
                file.close()

    def drop(self) -> None:
        with disk_errors(self.path.parent):
            self.path.unlink(missing_ok=True)
            self._notes.unlink(missing_ok=True)

    def sha256(self) -> str:
        """Of what is on the disk, written through to it."""
        with disk_errors(self.path.parent), open(self.path, "r+b") as file:
            os.fsync(file.fileno())
        return _sha256(self.path)


class Cache:
    """Fetched files by link and by checksum. An index that is damaged counts as empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / "index.json"

    def find(self, link: Link) -> Path | None:
        """The file fetched from this link, or any with the link's checksum; None if not there."""
        files = self._files()
        entries = [files.get(link.key)] + (list(files.values()) if link.sha256 else [])
        for entry in entries:
            if path := self._whole(entry, link.sha256):
                return path
        return None

    def partial(self, link: Link) -> Partial:
        with disk_errors(self.folder):
            (self.folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        return Partial(self.folder / PARTIAL, link.key)

    @contextmanager
    def lock(self, link: Link, on_status: Callable[[str], None]) -> Iterator[None]:
        """Held by one thread of one process per link; the others wait, and may be stopped."""
        partial = self.partial(link)
        lock = FileLock(partial.path.with_suffix(".lock"))
        while not self._try(lock):
            on_status(f"Waiting for another download of {link.name}")
        try:
            yield
        finally:
            lock.release()

    def _try(self, lock: FileLock) -> bool:
        with disk_errors(self.folder):
            try:
                lock.acquire(timeout=LOCK_SECONDS)
            except Timeout:
                return False
        return True

    def check_room(self, size: int) -> None:
        """Raises DownloadError if the disk has less than size bytes left."""
        with disk_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if size > free:
            raise DownloadError(
                f"{self.folder} has {free / 1e6:.0f} MB left, and {size / 1e6:.0f} MB are needed: "
                "make room or choose another folder"
            )

    def keep(self, partial: Partial, link: Link, name: str, sha256: str) -> Path:
        """Gives a whole partial file its name and notes it in the index. Returns its path."""
        path = self.folder / f"{name}-{sha256[:12]}.safetensors"
        etag = partial.notes().get("validator")
        entry = {"url": link.shown, "file": path.name, "sha256": sha256, "size": partial.size}
        with disk_errors(self.folder):
            if not (path.is_file() and _sha256(path) == sha256):  # by another link; may be in use
                os.replace(partial.path, path)
            self._add(link.key, entry | {"etag": etag})
            partial.drop()
        return path

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        with FileLock(self.folder / PARTIAL / "index.lock"):
            files = self._files()
            files[key] = entry
            _write_json(self._index, {"format": 1, "files": files})

    def _files(self) -> dict[str, Any]:
        files = _read_json(self._index).get("files")
        return files if isinstance(files, dict) else {}

    def _whole(self, entry: Any, sha256: str | None) -> Path | None:
        if not isinstance(entry, dict) or (sha256 and entry.get("sha256") != sha256):
            return None
        path = self.folder / Path(str(entry.get("file"))).name
        return path if path.is_file() and path.stat().st_size == entry.get("size") else None


def check_content(path: Path) -> None:
    """Raises DownloadError unless the file is a whole safetensors file."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise DownloadError(
            f"the file that came is damaged or incomplete ({error}) and was not kept; "
            "ask again, or download the file yourself and choose it by name"
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with disk_errors(path.parent), open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, for all of them can be made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    with disk_errors(path.parent):
        scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(scratch, path)
