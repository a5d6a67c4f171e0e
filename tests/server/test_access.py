"""Keys, links that work without one, and the size of bodies."""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.server.access import Keys
from ai_toolkit_inference.server.links import Links

CLIENT, ADMIN = "client-key-0123456789", "admin-key-0123456789"
SMALL = {"width": 64, "height": 64, "sample_steps": 1}
BODY = {"model": "sd15", "prompts": [SMALL]}


@pytest.fixture(scope="module")
def locked(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client, without a key, of a server that wants one and takes one megabyte."""
    import httpx

    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"# of friends\n\n  {CLIENT}  \nanother-key-0123456789\n")
    (folder / "admins").write_text(ADMIN)
    files = {"api_key_file": str(folder / "keys"), "admin_key_file": str(folder / "admins")}
    with (
        serve(folder, max_body_mb="1", **files) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- keys ------------------------------------------------------------------------------------

ROUTES = (
    ("POST", "/v1/inference"),
    ("GET", "/v1/requests"),
    ("GET", "/v1/requests/x/status"),
    ("GET", "/v1/requests/x/result"),
    ("POST", "/v1/requests/x/cancel"),
    ("GET", "/v1/files/x/content"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/sd15"),
    ("GET", "/metrics"),
)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=str)
def test_without_a_key_only_the_health_is_told(locked: Any, method: str, path: str) -> None:
    for headers in ({}, bearer("wrong"), {"Authorization": CLIENT}, bearer(CLIENT[:-1])):
        answer = locked.request(method, path, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.request(method, path, headers=bearer(CLIENT)).status_code != 401
    assert locked.get("/health").status_code == 200


def test_every_route_that_tells_or_does_something_takes_a_key(locked: Any) -> None:
    routes = locked.get("/openapi.json").json()["paths"]
    for path, methods in routes.items():
        for method in methods:
            answer = locked.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == (200 if path == "/health" else 401), (method, path)


@pytest.mark.parametrize("key", [CLIENT, "another-key-0123456789", ADMIN])
def test_every_key_of_the_files_opens(locked: Any, key: str) -> None:
    for headers in (bearer(key), {"Authorization": f"bearer  {key}"}):
        assert locked.get("/v1/models", headers=headers).status_code == 200


def test_a_key_that_is_no_text_is_refused(locked: Any) -> None:
    assert locked.get("/v1/models", headers={b"authorization": b"Bearer \xff"}).status_code == 401


class Asked:
    """As much of a request as Keys looks at."""

    def __init__(self, key: str = "") -> None:
        self.headers = {"authorization": f"Bearer {key}"} if key else {}


def write(folder: Path, **texts: str) -> dict[str, Path | None]:
    files: dict[str, Path | None] = {"api_file": None, "admin_file": None}
    for name, text in texts.items():
        files[name] = file = folder / name
        file.write_text(text)
    return files


@pytest.mark.parametrize(
    ("files", "key", "api", "admin"),
    [
        ({}, "", "", ""),
        ({"api_file": CLIENT}, "", "invalid_api_key", "invalid_api_key"),
        ({"api_file": CLIENT}, CLIENT, "", ""),
        ({"api_file": CLIENT, "admin_file": ADMIN}, CLIENT, "", "admin_key_required"),
        ({"api_file": CLIENT, "admin_file": ADMIN}, ADMIN, "", ""),
        ({"admin_file": ADMIN}, "", "", "admin_key_required"),
        ({"admin_file": ADMIN}, ADMIN, "", ""),
    ],
)
def test_who_may_draw_and_who_may_change(tmp_path, files, key, api, admin) -> None:
    keys = Keys(**write(tmp_path, **files))
    assert keys.asked_for == ("api_file" in files)
    for check, code in ((keys.check, api), (keys.check_admin, admin)):
        if code:
            with pytest.raises(InvalidInputError) as refused:
                check(Asked(key))
            assert refused.value.code == code
        else:
            check(Asked(key))


def test_keys_are_compared_in_constant_time(tmp_path, monkeypatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    Keys(**write(tmp_path, api_file=f"{CLIENT}\n{ADMIN}")).check(Asked(CLIENT))
    assert compared == [CLIENT.encode(), ADMIN.encode()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "at least one key, each of 16 characters"),
        (b"# none\n\n", "at least one key"),
        (CLIENT.encode() + b"\nshort\n", "at least one key"),
        (b"\xff" * 20, "cannot be read: it is no text"),
    ],
)
def test_key_files_that_cannot_be_used(tmp_path, content, message) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as refused:
        Keys(file, None)
    assert "short" not in str(refused.value)


# --- links -----------------------------------------------------------------------------------


def test_a_link_needs_no_key(locked: Any) -> None:
    id = locked.post("/v1/inference", json=BODY, headers=bearer(CLIENT)).json()["request_id"]
    result: dict[str, Any] = {"outputs": None}
    while not result["outputs"]:
        time.sleep(0.02)
        result = locked.get(f"/v1/requests/{id}/result", headers=bearer(CLIENT)).json()
    url = result["outputs"][0]["url"]
    file = locked.get(url)
    assert file.status_code == 200
    plain = url.partition("?")[0]
    assert locked.get(plain).status_code == 401
    assert locked.get(plain, headers=bearer(CLIENT)).content == file.content
    for wrong in (url[:-1] + "-", url.replace("output_0", "output_1"), url + "%F0%9F", f"{plain}?"):
        assert locked.get(wrong).status_code == 401
    for wrong in ("expires=x", f"expires={'9' * 5000}", "expires=1"):
        assert locked.get(f"{plain}?{wrong}").status_code in (400, 401)


def test_a_link_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    links = Links()
    expires, signature = (part.partition("=")[2] for part in links.query("a").split("&"))
    links.check("a", int(expires), signature)
    for name, when, sign in (("b", int(expires), signature), ("a", int(expires) + 1, signature)):
        with pytest.raises(InvalidInputError, match="not valid any more"):
            links.check(name, when, sign)
    with pytest.raises(InvalidInputError, match="not valid any more"):
        Links().check("a", int(expires), signature)
    monkeypatch.setattr(time, "time", lambda: int(expires) + 1)
    with pytest.raises(InvalidInputError, match="not valid any more"):
        links.check("a", int(expires), signature)


def test_a_key_is_asked_for_before_a_body_has_come(locked: Any) -> None:
    for path in ("inference", "set_lora", "loras/verify", "images/generations", "images/edits"):
        lines = (f"POST /v1/{path} HTTP/1.1", "Host: x", "Content-Length: 99999", "", "")
        with socket.create_connection(
            (locked.base_url.host, locked.base_url.port), timeout=10
        ) as connection:
            connection.sendall("\r\n".join(lines).encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


# --- size of bodies --------------------------------------------------------------------------


def too_large(answer: Any) -> bool:
    error = answer.json()["error"]
    return answer.status_code == 413 and (error["code"], "1 MB" in error["message"]) == (
        "request_too_large",
        True,
    )


def chunks(size: int) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(size // 1000):
        yield b" " * 1000


def test_a_body_may_have_as_much_as_is_allowed(locked: Any) -> None:
    headers = bearer(CLIENT) | {"Content-Type": "application/json"}
    for content in (b" " * (2**20 + 1), chunks(2**20 + 2000)):
        assert too_large(locked.post("/v1/inference", content=content, headers=headers))
    for content in (b" " * 2**20, chunks(1_000_000)):
        answer = locked.post("/v1/inference", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_input")


def test_a_body_is_refused_before_it_has_come(locked: Any) -> None:
    address = (locked.base_url.host, locked.base_url.port)
    head = b"POST /v1/inference HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
