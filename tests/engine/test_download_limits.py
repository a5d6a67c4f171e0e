"""How much and what may come: size, time, room on the disk, and safetensors files only."""

from __future__ import annotations

import errno
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ai_toolkit_inference.engine import _download_cache, downloads


def test_too_large_files_are_refused_before_they_come(fails, site, parts):
    assert "too large" in fails(max_bytes=len(site.data) - 1)
    assert not parts()


def test_files_that_hide_their_size_are_cut_off(fails, site, parts):
    site.pages["/style.safetensors"] = site.unsized(site.data)
    assert "too large" in fails(max_bytes=len(site.data) - 1)
    assert not parts()


def test_limits_come_from_the_environment(fails, monkeypatch):
    monkeypatch.setenv("AITK_MAX_DOWNLOAD_BYTES", "1000")
    assert "AITK_MAX_DOWNLOAD_BYTES" in fails()
    monkeypatch.setenv("AITK_MAX_DOWNLOAD_BYTES", "much")
    assert "'much'" in fails()


def test_a_full_disk_is_foreseen(fails, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "make room" in fails()


def test_a_disk_that_fills_up_is_explained(fails, site, monkeypatch):
    def full(path: Path, *args: object, **kwargs: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_download_cache, "open", full, raising=False)
    assert "No space left" in fails()


def test_silence_ends_a_download(fails, site, network, monkeypatch, parts):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    quiet = threading.Event()

    def stalls(handler: Any) -> None:
        handler.head(200, Content_Length=len(site.data), ETag='"v1"')
        handler.wfile.write(site.data[:50_000])
        quiet.wait(60)

    site.pages["/style.safetensors"] = site.in_turn(stalls, lambda handler: quiet.wait(60))
    message = fails(network=replace(network, stall_seconds=0.5))
    quiet.set()
    assert "sent nothing for too long" in message and "ask again to continue" in message
    assert [path.stat().st_size for path in parts()] == [50_000]


@pytest.mark.parametrize("trickle", [b"X-Header: a\r\n", b""])
def test_a_trickle_does_not_outlast_the_time_limit(fails, site, trickle):
    done = threading.Event()

    def trickles(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if not trickle:
            handler.wfile.write(b"Content-Length: 1000000\r\n\r\n" + site.data[:1000])
        while not done.wait(0.02):
            handler.wfile.write(trickle[:1] or b"a")

    site.pages["/style.safetensors"] = trickles
    assert "longer than allowed" in fails(max_seconds=0.4)
    done.set()


def header(length: int) -> bytes:
    return length.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "web page"),
        (b"PK\x03\x04" + bytes(100), "pickled"),
        (b"\x80\x02}q\x00" + bytes(100), "pickled"),
        (b"\x1f\x8b\x08" + bytes(100), "no safetensors file"),
        (header(200_000_000) + b"{" + bytes(100), "no safetensors file"),
        (header(50) + b"[" + bytes(100), "no safetensors file"),
        (b"short", "no safetensors file"),
        (b"", "no safetensors file"),
    ],
)
def test_other_files_are_refused_by_their_first_bytes(fails, site, body, says, parts):
    site.pages["/style.safetensors"] = site.answer(200, body)
    assert says in fails()
    site.pages["/style.safetensors"] = site.unsized(body)
    assert says in fails()
    assert not parts()


@pytest.mark.parametrize(("start", "says"), [(b"PK\x03\x04", "pickled"), (b"", "too large")])
def test_the_bulk_of_a_refused_file_does_not_come(fails, site, start, says):
    hung_up = threading.Event()

    def huge(handler: Any) -> None:
        handler.head(200)
        try:
            handler.wfile.write(start or site.data)
            for _ in range(100):
                handler.wfile.write(bytes(1_000_000))
        except OSError:
            hung_up.set()

    site.pages["/style.safetensors"] = huge
    assert says in fails(max_bytes=10_000_000)
    assert hung_up.wait(10)


def test_web_pages_are_told_by_their_type(fails, site):
    site.pages["/style.safetensors"] = site.answer(200, b"Please log in.", Content_Type="text/html")
    assert "HF_TOKEN" in fails()


def test_compressed_answers_are_refused_undecoded(fails, site):
    site.pages["/style.safetensors"] = site.answer(200, site.data, Content_Encoding="gzip")
    assert "comes as gzip" in fails()
    assert site.seen[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("damage", ["cut", "longer", "bad header"])
def test_damaged_files_are_not_kept(fails, site, damage, parts):
    bad = header(10) + b"{not json" + bytes(100)
    body = {"cut": site.data[:-1], "longer": site.data + b"x", "bad header": bad}[damage]
    site.pages["/style.safetensors"] = site.answer(200, body)
    assert "damaged or incomplete" in fails()
    assert not parts()


def test_a_wrong_checksum_keeps_nothing(fails, site, parts):
    assert f"the link promises {'ab' * 32}" in fails(
        site.url(f"style.safetensors#sha256={'ab' * 32}")
    )
    assert not parts()


def test_a_right_checksum_passes(fetch, site):
    assert fetch(site.url(f"style.safetensors#sha256={site.sha}")).name == site.name
