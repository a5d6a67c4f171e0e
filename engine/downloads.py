"""LoRA files behind links: fetched once, checked, and kept under a name that tells the content.

FOLDER/NAME-SHA256.safetensors (12 digits) is a whole, verified file, and FOLDER/index.json says
which link it came from. FOLDER/.partial holds what is not whole yet, and locks.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ..core.errors import DownloadError
from ._download_cache import Cache, check_content
from ._http import Answer, Network, TransientError, open_url, same_origin
from ._links import CIVITAI, SAFETENSORS_ONLY, Link, clean_name, is_remote, read_link, token_for
from ._meter import Meter, megabytes

__all__ = ["fetch_adapter", "is_remote"]

MAX_BYTES = 8 * 1024**3
MAX_SECONDS = 2 * 3600
ATTEMPTS = 5  # in a row without a byte of progress
MAX_WAIT = 60.0  # seconds between two attempts
BUSY = (408, 429, 500, 502, 503, 504)
MAX_HEADER = 100_000_000  # bytes; the limit of safetensors
HEAD = 9  # bytes: the header's length and its first character
CHUNK = 1 << 20
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(6)))
STATUS_SECONDS = 0.25
WAIT_STEP = 0.5
Status = Callable[[str], None]


def fetch_adapter(
    text: str,
    folder: Path,
    on_status: Status,
    *,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    network: Network | None = None,
) -> Path:
    """The local file of a link to a LoRA, fetched into folder unless it is there already.

    max_bytes, max_seconds: None is AITK_MAX_DOWNLOAD_BYTES and AITK_DOWNLOAD_SECONDS, or 8 GiB
    and two hours. Whatever on_status raises stops the download; what has come is kept and
    continued next time. Raises DownloadError, whose text holds no query and no token.
    """
    link = read_link(text)
    limit = _setting("AITK_MAX_DOWNLOAD_BYTES", MAX_BYTES) if max_bytes is None else max_bytes
    seconds = _setting("AITK_DOWNLOAD_SECONDS", MAX_SECONDS) if max_seconds is None else max_seconds
    cache = Cache(folder)
    if found := cache.find(link):
        return found
    with cache.lock(link, on_status):
        if found := cache.find(link):  # another one has fetched it meanwhile
            return found
        deadline = time.monotonic() + seconds
        return _Download(link, cache, on_status, int(limit), deadline, network or Network()).run()


class _Download:
    """One link, attempted until the file is whole or it makes no sense to go on."""

    def __init__(
        self,
        link: Link,
        cache: Cache,
        on_status: Status,
        max_bytes: int,
        deadline: float,
        network: Network,
    ) -> None:
        self.link, self.cache, self.on_status = link, cache, on_status
        self.max_bytes, self.deadline, self.network = max_bytes, deadline, network
        self.partial = cache.partial(link)
        self.token = token_for(link)
        self.reported, self.meter = time.monotonic(), Meter(link.name)

    def run(self) -> Path:
        self.on_status(f"Downloading {self.link.name}")
        failures = 0
        while True:
            before = self.partial.size
            try:
                self._attempt()
                return self._finish()
            except TransientError as error:
                failures = 1 if self.partial.size > before else failures + 1
                self._pause(error, failures)

    def _attempt(self) -> None:
        """Fetches what is missing. Returns once all of it has come."""
        offset, notes = self.partial.offset, self.partial.notes()
        if offset and offset == notes.get("size"):
            return
        wanted = {"Range": f"bytes={offset}-", "If-Range": notes["validator"]} if offset else {}
        with open_url(self.link.url, wanted, self.token, self.network, self.deadline) as answer:
            self._check_status(answer, offset)
            if answer.status == 206:
                self._stream(answer, b"", offset, self._whole_size(answer, offset, notes))
            else:  # the whole file, also where the rest was asked for
                total = answer.response.length
                self._check_size(total, 0)
                head = _read_head(answer, total, self.link)
                self.partial.start(self._notes(answer, total))
                self._stream(answer, head, 0, total)

    def _stream(self, answer: Answer, head: bytes, done: int, total: int | None) -> None:
        self._check_size(total, done)
        with self.partial.writer() as write:
            for data in _chunks(answer, head):
                done += len(data)
                if done > self.max_bytes:
                    break
                write(data)
                self._report(done, total)
        if done > self.max_bytes:
            self.partial.drop()
            self._check_size(done, done)
        if total is not None and done < total:
            raise TransientError(f"{answer.host} ended after {done} of {total} bytes")

    def _check_size(self, total: int | None, done: int) -> None:
        if total is not None and total > self.max_bytes:
            raise DownloadError(
                f"{self.link.shown} is too large: {megabytes(total)} MB or more, allowed "
                f"are {megabytes(self.max_bytes)} MB; if that is meant, raise "
                "AITK_MAX_DOWNLOAD_BYTES"
            )
        self.cache.check_room((total or 0) - done)

    def _check_status(self, answer: Answer, offset: int) -> None:
        status = answer.status
        if status == 200 or (status == 206 and offset):
            return
        if status == 416 and offset:
            self.partial.drop()
            raise TransientError(f"{answer.host} has another file now", wait=0)
        if status in BUSY:
            wait = _retry_after(answer.headers)
            raise TransientError(f"{answer.host} is busy (status {status})", wait)
        code = answer.headers.get("X-Error-Code") or ""
        status_text = f"{status} {code}" if re.fullmatch(r"\w+", code) else str(status)
        raise DownloadError(
            f"{self.link.shown}: {answer.host} answered {status_text}; {self._advice(status)}"
        )

    def _advice(self, status: int) -> str:
        if status not in (401, 403, 404, 410):
            return "check the link, or download the file yourself and choose it by name"
        if self.link.on_hub:
            sent = "the token that was sent does not open it" if self.token else "no token was sent"
            return (
                f"check the link. If the repository is private or gated, accept its licence on "
                f"the website and put your token into HF_TOKEN ({sent})"
            )
        if same_origin(self.link.url, CIVITAI):
            return "check the link; if it asks for a login, put an API key into CIVITAI_TOKEN"
        return "check the link; if it needs a login, download the file and choose it by name"

    def _whole_size(self, answer: Answer, offset: int, notes: dict[str, Any]) -> int | None:
        """What the answer to a range says. Raises TransientError if it is not the rest."""
        answered = answer.headers.get("Content-Range") or ""
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answered)
        total = int(found[2]) if found and found[2] != "*" else None
        if not found or int(found[1]) != offset or notes.get("size") not in (None, total):
            self.partial.drop()
            raise TransientError(f"{answer.host} sent another part than asked for")
        return total

    def _notes(self, answer: Answer, total: int | None) -> dict[str, Any]:
        name = self.link.name
        if not self.link.named:
            name = clean_name(answer.headers.get_filename() or name)
        return {
            "url": self.link.shown,
            "name": name,
            "size": total,
            "sha256": _promised(answer.own) if self.link.on_hub else None,
            "validator": _validator(answer.headers),
        }

    def _finish(self) -> Path:
        """The whole file in its place, if it is what was promised; else nothing is kept."""
        notes, sha256 = self.partial.notes(), self.partial.sha256()
        try:
            for who, wanted in (("the link", self.link.sha256), ("the site", notes["sha256"])):
                if wanted not in (None, sha256):
                    raise DownloadError(
                        f"{self.link.shown} has the sha256 {sha256}, but {who} promises {wanted}; "
                        "it was not kept. The file was changed or damaged: ask its author"
                    )
            check_content(self.partial.path)
        except DownloadError:
            self.partial.drop()
            raise
        return self.cache.keep(self.partial, self.link, notes["name"], sha256)

    def _pause(self, error: TransientError, failures: int) -> None:
        """Waits before another attempt, or raises DownloadError if there is to be none."""
        wait = 2.0 ** (failures - 1) if error.wait is None else error.wait
        if failures >= ATTEMPTS or wait > MAX_WAIT or time.monotonic() + wait > self.deadline:
            asked = f", and asks to wait {error.wait:.0f} s" if error.wait else ""
            raise DownloadError(
                f"{self.link.shown}: {error}{asked}. What has come is kept: ask again to continue"
            ) from error
        while wait > 0:
            self.on_status(f"{self.link.name}: {error}; trying again in {wait:.0f} s")
            self.network.sleep(min(WAIT_STEP, wait))
            wait -= WAIT_STEP

    def _report(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self.reported >= STATUS_SECONDS or done == total:
            self.reported = now
            self.on_status(self.meter.text(done, total))


def _chunks(answer: Answer, head: bytes) -> Iterator[bytes]:
    if head:
        yield head
    while data := answer.read(CHUNK):
        yield data


def _read_head(answer: Answer, total: int | None, link: Link) -> bytes:
    """The first bytes. Raises DownloadError unless a safetensors file starts with them."""
    encoding = answer.headers.get("Content-Encoding") or "identity"
    if encoding.lower() != "identity":
        raise DownloadError(f"{link.shown} comes as {encoding}, not as it is; use another link")
    head = b""
    while len(head) < HEAD and (data := answer.read(CHUNK)):
        head += data
    if len(head) < min(HEAD, total or 0):
        raise TransientError(f"{answer.host} ended after {len(head)} of {total} bytes")
    page = answer.headers.get_content_type() == "text/html"
    if page or head.lstrip()[:1] == b"<":
        raise DownloadError(
            f"{link.shown} leads to a web page, not to a file, perhaps to a login: copy the link "
            "of the file itself; private and gated repositories need a token in HF_TOKEN"
        )
    length = int.from_bytes(head[:8], "little")
    if len(head) < HEAD or head[8:9] != b"{" or length > min(MAX_HEADER, total or MAX_HEADER):
        kind = "a pickled checkpoint" if head.startswith(PICKLES) else "no safetensors file"
        raise DownloadError(f"{link.shown} is {kind}; {SAFETENSORS_ONLY}")
    return head


def _validator(headers: Message) -> str | None:
    """What tells later whether the file is still the same: a strong ETag, or its date."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _promised(answers: list[Message]) -> str | None:
    """The sha256 that Hugging Face gives as the ETag of a large file."""
    for headers in answers:
        for name in ("X-Linked-ETag", "ETag"):
            if found := re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', headers.get(name) or ""):
                return found[1]
    return None


def _retry_after(headers: Message) -> float | None:
    """Seconds, given as such or as a date; None if the server does not say."""
    text = headers.get("Retry-After") or ""
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise DownloadError(f"{name} is {text!r}; allowed: a number above 0")
    return value
