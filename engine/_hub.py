"""Repositories of Hugging Face, fetched into its cache by a process of their own.

That process can be ended at any time; huggingface_hub itself, in threads, some of them not
Python's, cannot. What has come is kept and continued next time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..core.errors import DownloadError
from ._meter import Meter

PROGRAM = Path(__file__).with_name("_hub_process.py")
VARIANTS = ("*/*.*.safetensors", "consolidated*", "original/*")  # other forms of the same weights
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONSAFEPATH": "1"}


def fetch_repository(
    repository: str, allow: Sequence[str], on_status: Callable[[str], None]
) -> Path:
    """The folder of a repository's snapshot with the files that patterns allow.

    Whatever on_status raises stops the download. Raises DownloadError.
    """
    from huggingface_hub import constants

    on_status(f"Fetching {repository}")
    job = {
        "repository": repository,
        "allow": list(allow),
        "ignore": list(VARIANTS),
        "cache": str(constants.HF_HUB_CACHE),
    }
    meter = Meter(repository)
    with tempfile.TemporaryFile() as complaints, _running(job, complaints) as process:
        for said in _lines(process):
            if "folder" in said:
                return Path(said["folder"])
            if "error" in said:
                raise DownloadError(said["error"])
            done, total = said["done"], said["total"]
            missing = total is None or done < total
            on_status(meter.text(done, total) if done and missing else f"Fetching {repository}")
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        raise DownloadError(*last or [f"the download ended with {process.wait()}"])


@contextmanager
def _running(job: dict[str, Any], complaints: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    from huggingface_hub import constants

    flags = ["-s"] if sys.flags.no_user_site else []
    offline = {"HF_HUB_OFFLINE": "1"} if constants.HF_HUB_OFFLINE else {}
    process = subprocess.Popen(
        [sys.executable, *flags, str(PROGRAM), json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env={**os.environ, **QUIET, **offline},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    for line in process.stdout or ():
        if line.startswith(b"{"):
            yield json.loads(line)
