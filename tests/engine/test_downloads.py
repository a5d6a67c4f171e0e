"""Downloads from a real https server on this machine, with a throwaway certificate authority."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trustme
from safetensors.numpy import save

from ai_toolkit_inference.core.errors import DownloadError
from ai_toolkit_inference.engine import _download_cache, _http, downloads
from ai_toolkit_inference.engine._http import Network, is_public
from ai_toolkit_inference.engine.downloads import fetch_adapter

HOSTS = ("hub.test", "files.test", "inner.test")
DATA = save({"lora": np.random.default_rng(0).random(50_000, np.float32)})  # 200 kB
SHA = hashlib.sha256(DATA).hexdigest()
NAME = f"style-{SHA[:12]}.safetensors"
TOKEN = "hf_topsecret"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.split("?")[0]
        host = self.headers["Host"].split(":")[0]
        self.server.seen.append(SimpleNamespace(host=host, path=self.path, headers=self.headers))
        self.server.pages.get(path, answer(404))(self)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """What is where (path -> how to answer), and the requests that came."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.pages: dict[str, Callable[[Handler], None]] = {}
        self.seen: list[SimpleNamespace] = []

    def url(self, path: str = "style.safetensors", host: str = "files.test") -> str:
        return f"https://{host}:{self.server_address[1]}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests


def answer(status: int, body: bytes = b"", **headers: object):
    def page(handler: Handler) -> None:
        handler.head(status, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return page


def file(data: bytes = DATA, etag: str | None = '"v1"', cut: int | None = None, ranges=True):
    """Serves data; cut: hangs up after so many bytes of each answer."""

    def page(handler: Handler) -> None:
        tags = {"ETag": etag} if etag else {}
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        start = int(wanted[1]) if ranges and wanted and handler.headers["If-Range"] == etag else 0
        part = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        handler.head(206 if start else 200, Content_Length=len(data) - start, **part, **tags)
        handler.wfile.write(data[start:][:cut])

    return page


def unsized(data: bytes):
    """Serves data without saying how much it is."""

    def page(handler: Handler) -> None:
        handler.head(200, ETag='"v1"')
        handler.wfile.write(data)

    return page


def in_turn(*pages: Callable[[Handler], None]):
    """Another page for each request; the last one stays."""
    left = list(pages)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def site(authority):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(tls)
    with Site(tls) as site:
        site.pages["/style.safetensors"] = file()
        thread = threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield site
        site.shutdown()


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
    return tmp_path / "aitk_downloads"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HF_ENDPOINT", "HF_TOKEN", "AITK_MAX_DOWNLOAD_BYTES", "AITK_DOWNLOAD_SECONDS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fetch(site, folder, network):
    """fetch(path or link) -> file; what was reported is in fetch.said."""
    said: list[str] = []

    def fetch(link: str = "style.safetensors", on_status=said.append, network=network, **limits):
        link = link if "://" in link else site.url(link)
        return fetch_adapter(link, folder, on_status, network=network, **limits)

    fetch.said = said
    return fetch


@pytest.fixture
def fails(fetch, folder):
    """The message of a download that has to fail and to leave no file behind."""

    def fails(*args, **kwargs) -> str:
        with pytest.raises(DownloadError) as caught:
            fetch(*args, **kwargs)
        assert not list(folder.glob("*.safetensors"))
        return str(caught.value)

    return fails


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".partial/*.part"))


def stop_when_some_has_come(text: str) -> None:
    """An on_status that stops the download."""
    if text.endswith(" MB"):
        raise InterruptedError(text)


# --- what is kept, and under which name ---


def test_a_file_is_fetched_once(fetch, site, folder):
    path = fetch()
    assert (path, path.read_bytes()) == (folder / NAME, DATA)
    assert not parts(folder)
    site.shutdown()
    site.server_close()
    assert fetch() == path
    assert len(site.seen) == 1


def test_the_index_names_the_link_without_its_secrets(fetch, site, folder):
    fetch("style.safetensors?X-Sig=topsecret")
    text = (folder / "index.json").read_text()
    (entry,) = json.loads(text)["files"].values()
    assert entry == {
        "url": site.url(),
        "file": NAME,
        "sha256": SHA,
        "size": len(DATA),
        "etag": '"v1"',
    }
    assert "topsecret" not in text


def test_a_known_checksum_needs_no_network(fetch, site):
    path = fetch()
    assert fetch(f"https://elsewhere.test/other.safetensors#sha256={SHA}") == path
    assert len(site.seen) == 1


def test_the_same_content_by_another_link_is_kept_once(fetch, site, folder):
    site.pages["/copy/style.safetensors"] = file()
    assert fetch() == fetch("copy/style.safetensors")
    assert [path.name for path in folder.glob("*.safetensors")] == [NAME]


@pytest.mark.parametrize("damage", ["deleted", "shortened", "no index", "odd index"])
def test_what_is_damaged_is_fetched_again(fetch, site, folder, damage):
    path = fetch()
    if damage == "deleted":
        path.unlink()
    elif damage == "shortened":
        path.write_bytes(DATA[:100])
    else:
        (folder / "index.json").write_text("{" if damage == "no index" else '{"files": {"a": 1}}')
    assert fetch().read_bytes() == DATA
    assert len(site.seen) == 2


def test_the_server_names_a_file_that_the_link_does_not(fetch, site):
    disposition = "attachment; filename*=UTF-8''..%2FMy%20Style.safetensors"
    site.pages["/models/12"] = answer(200, DATA, Content_Disposition=disposition)
    assert fetch("models/12").name == f"My_Style-{SHA[:12]}.safetensors"


def test_progress_is_told_first_and_last_and_seldom_between(fetch, monkeypatch):
    monkeypatch.setattr(downloads, "STATUS_SECONDS", 3600)
    fetch()
    assert fetch.said == ["Downloading style", "Downloading style 1/1 MB"]


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


# --- Hugging Face ---


@pytest.fixture
def hub(site, monkeypatch):
    """A mirror that needs a token and sends on to files.test, as Hugging Face does."""
    monkeypatch.setenv("HF_ENDPOINT", site.url("", "hub.test"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def page(etag: str, target: str) -> None:
        headers = {"Location": target, "X_Linked_ETag": f'"{etag}"'}
        site.pages["/o/r/resolve/main/style.safetensors"] = answer(302, **headers)

    page(SHA, site.url("style.safetensors?X-Sig=topsecret"))
    return page


def test_the_token_goes_to_the_hub_only(fetch, site, hub, folder):
    assert fetch("hf://o/r/style.safetensors").name == NAME
    sent = [(request.host, request.headers.get("Authorization")) for request in site.seen]
    assert sent == [("hub.test", f"Bearer {TOKEN}"), ("files.test", None)]
    kept = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert not re.search("topsecret", kept + "".join(fetch.said))


def test_the_token_does_not_come_back_after_a_detour(fetch, site, hub):
    hub(SHA, site.url("away"))
    site.pages["/away"] = answer(307, Location="/farther")
    site.pages["/farther"] = answer(307, Location=site.url(host="hub.test"))
    fetch("hf://o/r/style.safetensors")
    assert ["Authorization" in request.headers for request in site.seen] == [True] + [False] * 3


def test_the_checksum_of_the_hub_is_verified(fails, site, hub, folder):
    hub("ab" * 32, site.url())
    assert "the site promises abab" in fails("hf://o/r/style.safetensors")
    assert not parts(folder)


def test_a_foreign_site_promises_nothing(fetch, site):
    site.pages["/style.safetensors"] = file(etag=f'"{"ab" * 32}"')
    assert fetch().name == NAME


@pytest.mark.parametrize("status", [401, 403, 404])
def test_gated_and_missing_repositories_are_explained(fails, site, hub, status):
    page = answer(status, X_Error_Code="GatedRepo")
    site.pages["/o/r/resolve/main/style.safetensors"] = page
    message = fails("hf://o/r/style.safetensors")
    assert f"{status} GatedRepo" in message and "HF_TOKEN" in message and TOKEN not in message
    assert "login" in fails("missing.safetensors")


# --- where a link may lead ---


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
        "[::ffff:10.0.0.1]",
    ],
)
def test_the_network_that_users_get_refuses_this_machine(folder, host):
    with pytest.raises(DownloadError, match="private or local"):
        fetch_adapter(f"https://{host}/a.safetensors", folder, print)


def test_one_private_address_among_others_is_refused(fails, network, site):
    mixed = replace(network, resolve=lambda host, port: ["127.0.0.1", "10.0.0.1"])
    assert "10.0.0.1" in fails(network=mixed)
    assert not site.seen


@pytest.mark.parametrize(
    "target", ["https://inner.test/x", "https://10.0.0.1/x", "http://files.test/x"]
)
def test_redirects_are_judged_like_links(fails, network, site, target):
    names = {"files.test": "127.0.0.1", "inner.test": "192.168.0.7", "10.0.0.1": "10.0.0.1"}
    site.pages["/style.safetensors"] = answer(302, Location=target)
    assert "refused" in fails(network=replace(network, resolve=lambda host, port: [names[host]]))
    assert len(site.seen) == 1


def test_a_name_is_resolved_once_for_each_connection(fetch, fails, network, site, monkeypatch):
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1" if len(asked) == 1 else "10.0.0.1"]

    reached: list[str] = []
    connect = socket.create_connection
    monkeypatch.setattr(
        _http.socket,
        "create_connection",
        lambda address, timeout: reached.append(address[0]) or connect(address, timeout),
    )
    network = replace(network, resolve=rebinding)
    site.pages["/moved.safetensors"] = answer(302, Location="/style.safetensors")
    assert "10.0.0.1" in fails("moved.safetensors", network=network)
    assert reached == ["127.0.0.1"] and len(asked) == 2
    asked.clear()
    fetch(network=network)
    assert len(asked) == 1


def test_redirects_end(fails, site):
    site.pages["/style.safetensors"] = answer(302, Location="/style.safetensors")
    assert "more than 5 redirects" in fails()
    assert len(site.seen) == 6


def test_ports_are_limited(fails, network):
    assert "allowed: 443 and 8443" in fails(network=replace(network, ports=(443, 8443)))


def test_a_certificate_of_another_name_is_refused(fails, site, naps):
    assert "did not prove who it is" in fails(site.url(host="other.test"))
    assert not naps


def test_an_unknown_authority_is_refused(fails, network):
    assert "did not prove" in fails(network=replace(network, tls=_http.tls_context))


def test_unknown_names_are_explained(fails, network):
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert "files.test was not found" in fails(network=replace(network, resolve=unknown))
    proxied = replace(network, resolve=unknown, proxy=lambda host: "http://proxy:1")
    assert "A proxy is set" in fails(network=proxied)


# --- proxies ---


@pytest.fixture
def proxy():
    """An http proxy for one connection: proxy(status) -> its address; what it read in .asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve(status: int) -> None:
        client, _ = listener.accept()
        asked.append(client.recv(65536))
        client.sendall(f"HTTP/1.1 {status} Whatever\r\n\r\n".encode())
        if status == 200:
            host, port = asked[0].split()[1].decode().rsplit(":", 1)
            server = socket.create_connection((host, int(port)))
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            pump(server, client)
        client.close()

    def start(status: int = 200) -> str:
        threading.Thread(target=serve, args=(status,), daemon=True).start()
        return f"http://me:p%40ss@127.0.0.1:{listener.getsockname()[1]}"

    start.asked = asked
    yield start
    listener.close()


def test_a_proxy_is_given_the_judged_address(fetch, network, site, proxy):
    address = proxy()
    assert fetch(network=replace(network, proxy=lambda host: address)).name == NAME
    lines = proxy.asked[0].decode().split("\r\n")
    assert lines[0] == f"CONNECT 127.0.0.1:{site.server_address[1]} HTTP/1.1"
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in lines


def test_a_proxy_that_refuses_is_explained(fails, network, proxy):
    address = proxy(403)
    message = fails(network=replace(network, proxy=lambda host: address))
    assert "answered 403" in message and "p%40ss" not in message and "p@ss" not in message


@pytest.mark.parametrize("address", ["socks5://proxy:1", "https://proxy:1", "http://proxy:port"])
def test_other_proxies_are_refused(fails, network, address):
    assert "HTTPS_PROXY" in fails(network=replace(network, proxy=lambda host: address))


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "inner.test")
    assert _http.system_proxy("files.test") == "http://proxy:1"
    assert _http.system_proxy("inner.test") is None


# --- limits ---


def test_too_large_files_are_refused_before_they_come(fails, folder):
    assert "too large" in fails(max_bytes=len(DATA) - 1)
    assert not parts(folder)


def test_files_that_hide_their_size_are_cut_off(fails, site, folder):
    site.pages["/style.safetensors"] = unsized(DATA)
    assert "too large" in fails(max_bytes=len(DATA) - 1)
    assert not parts(folder)


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


def test_silence_ends_a_download(fails, site, network, folder, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    quiet = threading.Event()

    def stalls(handler: Handler) -> None:
        handler.head(200, Content_Length=len(DATA), ETag='"v1"')
        handler.wfile.write(DATA[:50_000])
        quiet.wait(60)

    site.pages["/style.safetensors"] = in_turn(stalls, lambda handler: quiet.wait(60))
    message = fails(network=replace(network, stall_seconds=0.5))
    quiet.set()
    assert "sent nothing for too long" in message and "ask again to continue" in message
    assert [path.stat().st_size for path in parts(folder)] == [50_000]


@pytest.mark.parametrize("trickle", [b"X-Header: a\r\n", b""])
def test_a_trickle_does_not_outlast_the_time_limit(fails, site, trickle):
    done = threading.Event()

    def trickles(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if not trickle:
            handler.wfile.write(b"Content-Length: 1000000\r\n\r\n" + DATA[:1000])
        while not done.wait(0.02):
            handler.wfile.write(trickle[:1] or b"a")

    site.pages["/style.safetensors"] = trickles
    assert "longer than allowed" in fails(max_seconds=0.4)
    done.set()


# --- content ---


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
def test_other_files_are_refused_by_their_first_bytes(fails, site, folder, body, says):
    site.pages["/style.safetensors"] = answer(200, body)
    assert says in fails()
    site.pages["/style.safetensors"] = unsized(body)
    assert says in fails()
    assert not parts(folder)


@pytest.mark.parametrize(("start", "says"), [(b"PK\x03\x04", "pickled"), (DATA, "too large")])
def test_the_bulk_of_a_refused_file_does_not_come(fails, site, start, says):
    hung_up = threading.Event()

    def huge(handler: Handler) -> None:
        handler.head(200)
        try:
            handler.wfile.write(start)
            for _ in range(100):
                handler.wfile.write(bytes(1_000_000))
        except OSError:
            hung_up.set()

    site.pages["/style.safetensors"] = huge
    assert says in fails(max_bytes=10_000_000)
    assert hung_up.wait(10)


def test_web_pages_are_told_by_their_type(fails, site):
    site.pages["/style.safetensors"] = answer(200, b"Please log in.", Content_Type="text/html")
    assert "HF_TOKEN" in fails()


def test_compressed_answers_are_refused_undecoded(fails, site):
    site.pages["/style.safetensors"] = answer(200, DATA, Content_Encoding="gzip")
    assert "comes as gzip" in fails()
    assert site.seen[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("body", [DATA[:-1], DATA + b"x", header(10) + b"{not json" + bytes(100)])
def test_damaged_files_are_not_kept(fails, site, folder, body):
    site.pages["/style.safetensors"] = answer(200, body)
    assert "damaged or incomplete" in fails()
    assert not parts(folder)


def test_a_wrong_checksum_keeps_nothing(fails, site, folder):
    assert f"the link promises {'ab' * 32}" in fails(
        site.url(f"style.safetensors#sha256={'ab' * 32}")
    )
    assert not parts(folder)


def test_a_right_checksum_passes(fetch, site):
    assert fetch(site.url(f"style.safetensors#sha256={SHA}")).name == NAME


# --- interruptions ---


def test_a_cut_connection_is_continued(fetch, site, naps):
    site.pages["/style.safetensors"] = file(cut=90_000)
    assert fetch().read_bytes() == DATA
    asked = [(r.headers.get("Range"), r.headers.get("If-Range")) for r in site.seen]
    assert asked == [(None, None), ("bytes=90000-", '"v1"'), ("bytes=180000-", '"v1"')]
    assert sum(naps) == 2  # progress starts the count of failures again


def test_a_stopped_download_is_continued_when_asked_again(fetch, site, folder, monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    monkeypatch.setattr(downloads, "STATUS_SECONDS", 0)
    with pytest.raises(InterruptedError):
        fetch(on_status=stop_when_some_has_come)
    (part,) = parts(folder)
    size = part.stat().st_size
    assert 0 < size < len(DATA) and not list(folder.glob("*.safetensors"))
    assert fetch().read_bytes() == DATA
    assert site.seen[1].headers["Range"] == f"bytes={size}-"
    assert not parts(folder)


BROKEN = file(cut=90_000)
OTHER = save({"lora": np.random.default_rng(1).random(40_000, np.float32)})


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        pytest.param([BROKEN, file(ranges=False)], DATA, id="ranges ignored"),
        pytest.param([BROKEN, file(OTHER, '"v2"')], OTHER, id="another file now"),
        pytest.param([BROKEN, answer(416), file()], DATA, id="range refused"),
        pytest.param([file(etag=None, cut=90_000), file(etag=None)], DATA, id="no validator"),
        pytest.param([file(etag='W/"1"', cut=90_000), file()], DATA, id="weak validator"),
        pytest.param(
            [
                BROKEN,
                answer(206, DATA[9:], Content_Range=f"bytes 9-{len(DATA) - 1}/{len(DATA)}"),
                file(),
            ],
            DATA,
            id="another part",
        ),
        pytest.param([BROKEN, answer(206, DATA[90_000:]), file()], DATA, id="part of no name"),
        pytest.param([file(cut=4), file()], DATA, id="cut in the first bytes"),
        pytest.param([lambda handler: None, file()], DATA, id="no answer"),
        pytest.param([answer(503), answer(502), answer(429), file()], DATA, id="busy"),
    ],
)
def test_a_download_starts_again_where_it_has_to(fetch, site, pages, expected):
    site.pages["/style.safetensors"] = in_turn(*pages)
    assert fetch().read_bytes() == expected


def test_a_file_that_was_whole_is_not_asked_for_again(fetch, site, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "check_content", lambda path: 1 / 0)  # the process ends here
        with pytest.raises(ZeroDivisionError):
            fetch()
    assert parts(folder) and fetch().name == NAME
    assert len(site.seen) == 1


def test_a_server_says_how_long_to_wait(fetch, site, naps):
    site.pages["/style.safetensors"] = in_turn(answer(429, Retry_After=7), file())
    fetch()
    assert sum(naps) == 7
    assert "files.test is busy (status 429); trying again in 7 s" in fetch.said[1]


def test_a_server_may_not_say_too_long(fails, site, naps):
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7200))
    for wait in (3600, date):
        site.pages["/style.safetensors"] = answer(503, Retry_After=wait)
        assert "asks to wait" in fails()
    assert not naps


def test_a_broken_server_is_given_up(fails, site, naps):
    site.pages["/style.safetensors"] = answer(500)
    assert "busy (status 500)" in fails("style.safetensors?X-Sig=topsecret")
    assert len(site.seen) == 5 and sum(naps) == 1 + 2 + 4 + 8


def test_a_server_that_is_down_is_explained(fails, site):
    link = site.url("style.safetensors?X-Sig=topsecret")
    site.shutdown()
    site.server_close()
    message = fails(link)
    assert "cannot be reached" in message and "topsecret" not in message
