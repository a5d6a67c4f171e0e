"""Where a link may lead: public addresses, proven names, redirects, proxies."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from ai_toolkit_inference.core.errors import DownloadError
from ai_toolkit_inference.engine import _http
from ai_toolkit_inference.engine.downloads import fetch_adapter


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
    site.pages["/style.safetensors"] = site.answer(302, Location=target)
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
    site.pages["/moved.safetensors"] = site.answer(302, Location="/style.safetensors")
    assert "10.0.0.1" in fails("moved.safetensors", network=network)
    assert reached == ["127.0.0.1"] and len(asked) == 2
    asked.clear()
    fetch(network=network)
    assert len(asked) == 1


def test_redirects_end(fails, site):
    site.pages["/style.safetensors"] = site.answer(302, Location="/style.safetensors")
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


class Proxy:
    """An http proxy for one connection that answers it with a status. asked: what it was sent."""

    def __init__(self, status: int) -> None:
        self.status, self.asked = status, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://me:p%40ss@127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        client, _ = self.listener.accept()
        with client, self.listener:
            self.asked = client.recv(65536)
            client.sendall(f"HTTP/1.1 {self.status} Whatever\r\n\r\n".encode())
            if self.status == 200:
                host, port = self.asked.split()[1].decode().rsplit(":", 1)
                with socket.create_connection((host, int(port))) as server:
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()
                    pump(server, client)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # one of the two has hung up
        while data := source.recv(65536):
            target.sendall(data)


def test_a_proxy_is_given_the_judged_address(fetch, network, site):
    proxy = Proxy(200)
    assert fetch(network=replace(network, proxy=lambda host: proxy.address)).name == site.name
    lines = proxy.asked.decode().split("\r\n")
    assert lines[0] == f"CONNECT 127.0.0.1:{site.server_address[1]} HTTP/1.1"
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in lines


def test_a_proxy_that_refuses_is_explained(fails, network):
    proxy = Proxy(403)
    message = fails(network=replace(network, proxy=lambda host: proxy.address))
    assert "answered 403" in message and "p%40ss" not in message and "p@ss" not in message


@pytest.mark.parametrize("address", ["socks5://proxy:1", "https://proxy:1", "http://proxy:port"])
def test_other_proxies_are_refused(fails, network, address):
    assert "HTTPS_PROXY" in fails(network=replace(network, proxy=lambda host: address))


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "inner.test")
    assert _http.system_proxy("files.test") == "http://proxy:1"
    assert _http.system_proxy("inner.test") is None
