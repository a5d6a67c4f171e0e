"""LoRA files from a real https server on this machine: kept once, continued, explained."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ai_toolkit_inference.engine import _download_cache, downloads

TOKEN = "hf_topsecret"


def stop_when_some_has_come(text: str) -> None:
    """An on_status that stops the download."""
    if " MB" in text:
        raise InterruptedError(text)


def test_a_file_is_fetched_once(fetch, site, folder, parts):
    path = fetch()
    assert (path, path.read_bytes()) == (folder / site.name, site.data)
    assert not parts()
    site.close()
    assert fetch() == path
    assert len(site.seen) == 1


def test_the_index_names_the_link_without_its_secrets(fetch, site, folder):
    fetch("style.safetensors?X-Sig=topsecret")
    text = (folder / "index.json").read_text()
    (entry,) = json.loads(text)["files"].values()
    assert entry == {
        "url": site.url(),
        "file": site.name,
        "sha256": site.sha,
        "size": len(site.data),
        "etag": '"v1"',
    }
    assert "topsecret" not in text


def test_a_known_checksum_needs_no_network(fetch, site):
    path = fetch()
    assert fetch(f"https://elsewhere.test/other.safetensors#sha256={site.sha}") == path
    assert len(site.seen) == 1


def test_the_same_content_by_another_link_is_kept_once(fetch, site, folder):
    site.pages["/copy/style.safetensors"] = site.file()
    assert fetch() == fetch("copy/style.safetensors")
    assert [path.name for path in folder.glob("*.safetensors")] == [site.name]


@pytest.mark.parametrize("damage", ["deleted", "shortened", "no index", "odd index"])
def test_what_is_damaged_is_fetched_again(fetch, site, folder, damage):
    path = fetch()
    if damage == "deleted":
        path.unlink()
    elif damage == "shortened":
        path.write_bytes(site.data[:100])
    else:
        (folder / "index.json").write_text("{" if damage == "no index" else '{"files": {"a": 1}}')
    assert fetch().read_bytes() == site.data
    assert len(site.seen) == 2


def test_the_server_names_a_file_that_the_link_does_not(fetch, site):
    disposition = "attachment; filename*=UTF-8''..%2FMy%20Style.safetensors"
    site.pages["/models/12"] = site.answer(200, site.data, Content_Disposition=disposition)
    assert fetch("models/12").name == f"My_Style-{site.sha[:12]}.safetensors"


def test_progress_is_told_first_and_last_and_seldom_between(fetch, monkeypatch, said):
    monkeypatch.setattr(downloads, "STATUS_SECONDS", 3600)
    fetch()
    first, last = said
    assert first == "Downloading style"
    assert re.fullmatch(r"Downloading style 1/1 MB(, \d+\.\d MB/s)?", last)


def test_threads_that_want_the_same_fetch_it_once(fetch, site):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 5 and len(set(found)) == 1 and len(site.seen) == 1


def test_waiting_for_another_download_can_be_stopped(fetch, site, folder, monkeypatch):
    monkeypatch.setattr(_download_cache, "LOCK_SECONDS", 0.01)
    link = downloads.read_link(site.url())

    def on_status(text: str) -> None:
        raise InterruptedError(text)

    with (
        _download_cache.Cache(folder).lock(link, print),
        pytest.raises(InterruptedError, match="Waiting"),
    ):
        fetch(on_status=on_status)
    assert not site.seen


@pytest.fixture
def hub(site, monkeypatch):
    """A mirror that needs a token and sends on to files.test, as Hugging Face does."""
    monkeypatch.setenv("HF_ENDPOINT", site.url("", "hub.test"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def page(etag: str, target: str) -> None:
        headers = {"Location": target, "X_Linked_ETag": f'"{etag}"'}
        site.pages["/o/r/resolve/main/style.safetensors"] = site.answer(302, **headers)

    page(site.sha, site.url("style.safetensors?X-Sig=topsecret"))
    return page


def test_the_token_goes_to_the_hub_only(fetch, site, hub, folder, said):
    assert fetch("hf://o/r/style.safetensors").name == site.name
    sent = [(request.host, request.headers.get("Authorization")) for request in site.seen]
    assert sent == [("hub.test", f"Bearer {TOKEN}"), ("files.test", None)]
    kept = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert not re.search("topsecret", kept + "".join(said))


def test_the_token_does_not_come_back_after_a_detour(fetch, site, hub):
    hub(site.sha, site.url("away"))
    site.pages["/away"] = site.answer(307, Location="/farther")
    site.pages["/farther"] = site.answer(307, Location=site.url(host="hub.test"))
    fetch("hf://o/r/style.safetensors")
    assert ["Authorization" in request.headers for request in site.seen] == [True] + [False] * 3


def test_the_checksum_of_the_hub_is_verified(fails, site, hub, parts):
    hub("ab" * 32, site.url())
    assert "the site promises abab" in fails("hf://o/r/style.safetensors")
    assert not parts()


def test_a_foreign_site_promises_nothing(fetch, site):
    site.pages["/style.safetensors"] = site.file(etag=f'"{"ab" * 32}"')
    assert fetch().name == site.name


@pytest.mark.parametrize("status", [401, 403, 404])
def test_gated_and_missing_repositories_are_explained(fails, site, hub, status):
    page = site.answer(status, X_Error_Code="GatedRepo")
    site.pages["/o/r/resolve/main/style.safetensors"] = page
    message = fails("hf://o/r/style.safetensors")
    assert f"{status} GatedRepo" in message and "HF_TOKEN" in message and TOKEN not in message
    assert "login" in fails("missing.safetensors")


def test_a_cut_connection_is_continued(fetch, site, naps):
    site.pages["/style.safetensors"] = site.file(cut=90_000)
    assert fetch().read_bytes() == site.data
    asked = [(r.headers.get("Range"), r.headers.get("If-Range")) for r in site.seen]
    assert asked == [(None, None), ("bytes=90000-", '"v1"'), ("bytes=180000-", '"v1"')]
    assert sum(naps) == 2  # progress starts the count of failures again


def test_a_stopped_download_is_continued_when_asked_again(fetch, site, folder, monkeypatch, parts):
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    monkeypatch.setattr(downloads, "STATUS_SECONDS", 0)
    with pytest.raises(InterruptedError):
        fetch(on_status=stop_when_some_has_come)
    (part,) = parts()
    size = part.stat().st_size
    assert 0 < size < len(site.data) and not list(folder.glob("*.safetensors"))
    assert fetch().read_bytes() == site.data
    assert site.seen[1].headers["Range"] == f"bytes={size}-"
    assert not parts()


OTHER = save({"lora": np.random.default_rng(1).random(40_000, np.float32)})
RESTARTS = {
    "ranges ignored": lambda site: [site.file(cut=90_000), site.file(ranges=False)],
    "another file now": lambda site: [site.file(cut=90_000), site.file(OTHER, '"v2"')],
    "range refused": lambda site: [site.file(cut=90_000), site.answer(416), site.file()],
    "no validator": lambda site: [site.file(etag=None, cut=90_000), site.file(etag=None)],
    "weak validator": lambda site: [site.file(etag='W/"1"', cut=90_000), site.file()],
    "another part": lambda site: [
        site.file(cut=90_000),
        site.answer(206, site.data[9:], Content_Range="bytes 9-200079/200080"),
        site.file(),
    ],
    "no range named": lambda site: [site.file(cut=90_000), site.answer(206, b"abc"), site.file()],
    "cut in the first bytes": lambda site: [site.file(cut=4), site.file()],
    "no answer": lambda site: [lambda handler: None, site.file()],
    "busy": lambda site: [*(site.answer(status) for status in (503, 502, 429)), site.file()],
}


@pytest.mark.parametrize("case", RESTARTS)
def test_a_download_starts_again_where_it_has_to(fetch, site, case):
    pages = RESTARTS[case](site)
    site.pages["/style.safetensors"] = site.in_turn(*pages)
    assert fetch().read_bytes() == (OTHER if case == "another file now" else site.data)
    assert len(site.seen) == len(pages)


def test_a_file_that_was_whole_is_not_asked_for_again(fetch, site, monkeypatch, parts):
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "check_content", lambda path: 1 / 0)  # the process ends here
        with pytest.raises(ZeroDivisionError):
            fetch()
    assert parts() and fetch().name == site.name
    assert len(site.seen) == 1


def test_a_server_says_how_long_to_wait(fetch, site, naps, said):
    site.pages["/style.safetensors"] = site.in_turn(site.answer(429, Retry_After=7), site.file())
    fetch()
    assert sum(naps) == 7
    assert "files.test is busy (status 429); trying again in 7 s" in said[1]


def test_a_server_may_not_say_too_long(fails, site, naps):
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7200))
    for wait in (3600, date):
        site.pages["/style.safetensors"] = site.answer(503, Retry_After=wait)
        assert "asks to wait" in fails()
    assert not naps


def test_a_broken_server_is_given_up(fails, site, naps):
    site.pages["/style.safetensors"] = site.answer(500)
    assert "busy (status 500)" in fails("style.safetensors?X-Sig=topsecret")
    assert len(site.seen) == 5 and sum(naps) == 1 + 2 + 4 + 8


def test_a_server_that_is_down_is_explained(fails, site):
    link = site.url("style.safetensors?X-Sig=topsecret")
    site.close()
    message = fails(link)
    assert "cannot be reached" in message and "topsecret" not in message
