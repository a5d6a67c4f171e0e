"""Parsed adapters, kept by what is in them, so that a file asked for again is not read again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from .peft import CONFIG
from .read import PEFT_FILE, Adapter, read_adapter

MAX_BYTES = 4 << 30
Stamp = tuple[tuple[str, int, int, int], ...]


class AdapterCache:
    """The last adapters that were asked for, up to `max_bytes` of tensors; the newest always.

    Safe to use from several threads.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()  # by digest
        self._digests: dict[Stamp, str] = {}  # of files as they were when read

    def get(self, path: str | Path) -> Adapter:
        """The adapter at a path. Raises AdapterError as read_adapter does."""
        with self._lock:
            stamp = _stamp(Path(path))
            adapter = self._adapters.get(self._digests.get(stamp, "")) if stamp else None
            if adapter is None:
                adapter = read_adapter(path)
                # one object for one content, whatever the file is called
                adapter = self._adapters.setdefault(adapter.digest, adapter)
                if stamp:
                    self._digests[stamp] = adapter.digest
            self._adapters.move_to_end(adapter.digest)
            self._forget()
        return replace(adapter, path=str(path))

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    def _forget(self) -> None:
        while len(self._adapters) > 1 and self._nbytes() > self._max_bytes:
            gone, _ = self._adapters.popitem(last=False)
            self._digests = {stamp: kept for stamp, kept in self._digests.items() if kept != gone}

    def _nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._adapters.values())


def _stamp(path: Path) -> Stamp | None:
    # of a file and of the configuration beside it; what else there is, read_adapter judges
    file = path / PEFT_FILE if os.path.isdir(path) else path
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        return None
    files = [part for part in (file, file.with_name(CONFIG)) if os.path.isfile(part)]
    stats = [(str(part.resolve()), part.stat()) for part in files]
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
