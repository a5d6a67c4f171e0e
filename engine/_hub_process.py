"""Run as a program of its own: fetches files of a repository of Hugging Face into its cache.

The argument is JSON: repository, allow and ignore (patterns of file names), cache (a folder).
Each line of output is JSON: {"done": bytes, "total": bytes or null} again and again, at the end
{"folder": path} or {"error": text}. Ends when its input ends, so that nobody has to end it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVERY = 0.2  # seconds


class Progress(threading.Thread):
    """Tells how much of the wanted blobs is on disk, by whatever way they come."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.folder = Path()
        self.blobs: dict[str, int] | None = None  # name -> size

    def run(self) -> None:
        while True:
            total = None if self.blobs is None else sum(self.blobs.values())
            say({"done": self._done(), "total": total})
            time.sleep(EVERY)

    def _done(self) -> int:
        if self.blobs is None or not self.folder.is_dir():
            return 0
        sizes = dict.fromkeys(self.blobs, 0)
        for file in self.folder.iterdir():
            name = file.name.split(".")[0]
            if name in sizes:
                sizes[name] = max(sizes[name], _size(file))
        return sum(sizes.values())


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def wanted_blobs(job: dict[str, Any]) -> dict[str, int] | None:
    """Name and size of each blob; None where the site does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects

    try:
        files = HfApi().model_info(job["repository"], files_metadata=True, timeout=10).siblings
    except (HfHubHTTPError, OSError, ValueError):
        return None
    chosen = filter_repo_objects(
        files or [],
        allow_patterns=job["allow"],
        ignore_patterns=job["ignore"],
        key=lambda file: file.rfilename,
    )
    return {_blob(file): file.size or 0 for file in chosen}


def _blob(file: Any) -> str:
    return file.lfs["sha256"] if file.lfs else file.blob_id


def _size(file: Path) -> int:
    # what is written, of a file that may have holes
    try:
        stat = file.stat()
    except OSError:  # renamed meanwhile
        return 0
    return min(stat.st_size, getattr(stat, "st_blocks", sys.maxsize) * 512)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    job = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    progress = Progress()
    progress.start()
    try:
        say({"folder": _fetch(job, progress)})
    except Exception as error:  # noqa: BLE001 - it is told to whoever asked
        say({"error": " ".join(str(error).split()) or type(error).__name__})


def _fetch(job: dict[str, Any], progress: Progress) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=job["repository"], repo_type="model")
    progress.folder = Path(job["cache"]) / name / "blobs"
    progress.blobs = wanted_blobs(job)
    return snapshot_download(
        job["repository"],
        allow_patterns=job["allow"],
        ignore_patterns=job["ignore"],
        cache_dir=job["cache"],
    )


if __name__ == "__main__":
    main()
