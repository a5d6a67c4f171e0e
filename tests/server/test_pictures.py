"""Control images out of requests: from everywhere a client may have them, and from nowhere else."""

from __future__ import annotations

import base64
import io
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from asking import data_address, png
from PIL import Image

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.engine._http import Network
from ai_toolkit_inference.server import pictures
from ai_toolkit_inference.server.errors import FieldError
from ai_toolkit_inference.server.pictures import read_pictures
from ai_toolkit_inference.server.schemas import InferenceRequest
from ai_toolkit_inference.server.settings import Settings

PICTURE = png(1)
TEXT = base64.b64encode(PICTURE).decode()


def pixels(picture: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture)


def asked(*prompts: dict[str, Any], model: str = "qwen_image_edit_plus") -> InferenceRequest:
    return InferenceRequest.model_validate({"model": model, "prompts": list(prompts)})


@pytest.fixture
def settings(tmp_path) -> Settings:
    """With a folder of pictures, beside which lies one that nobody may have."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(PICTURE)
    (folder / "a.inpaint.png").write_bytes(png(3, "RGBA"))
    (folder / "a.png").write_bytes(png(3, "RGBA"))
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return Settings(picture_folder=folder)


@pytest.fixture
def read(settings) -> Callable[..., Any]:
    """The picture of a source: read(text), or read(text, model="flex2", ctrl_idx=1)."""

    def read(text: str, model: str = "qwen_image_edit_plus", network: Any = None, **fields: Any):
        request = asked({"ctrl_img": text, **fields}, model=model)
        ((image,),) = read_pictures(request, settings, network)
        return image

    return read


@pytest.fixture
def fails(read) -> Callable[..., str]:
    """The message of a picture that cannot be had."""

    def fails(text: str, **fields: Any) -> str:
        with pytest.raises(FieldError) as refused:
            read(text, **fields)
        assert refused.value.field == "prompts.0.ctrl_img" and refused.value.http_status == 400
        return str(refused.value)

    return fails


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("sub/a.png", id="name"),
        pytest.param(data_address(PICTURE), id="data address"),
        pytest.param("DATA:image/x-png;BASE64," + TEXT, id="shouted"),
        pytest.param(TEXT, id="base64"),
        pytest.param(f"{TEXT[:76]}\n{TEXT[76:]}", id="base64 in lines"),
    ],
)
def test_a_picture_comes_from_everywhere(read, text):
    image = read(text)
    assert image.mode == "RGB" and np.array_equal(pixels(image), pixels(PICTURE))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("../secret.png", "'../secret.png' is no picture; give an https:// address"),
        ("link.png", "is no picture"),
        ("sub", "is no picture"),
        ("gone.png", "a name in the server's picture folder"),
        ("a\0.png", "is no picture"),
        ("x" * 5_000, "no picture that can be read"),
        (TEXT[:-200], "could not be read"),
        ("data:text/plain;base64,aGVsbG8=", "is no data address of a picture"),
        ("data:image/png,hello", "goes on in base64"),
        ("data:image/png;base64,!!!!", "goes on in base64"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "no picture that can be read"),
        ("http://example.com/a.png", "has to start with https://"),
        ("file:///etc/passwd", "has to start with https://"),
        ("https://127.0.0.1/a.png", "private or local"),
        ("https://localhost/a.png", "private or local"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_picture_is_refused(fails, settings, text, words):
    message = fails(text)
    assert message.startswith("prompts.0.ctrl_img: ") and words in message
    assert str(settings.picture_folder.parent) not in message and len(message) < 400


def test_without_a_folder_no_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(PICTURE)
    with pytest.raises(FieldError, match=r"AITK_PICTURE_PATH"):
        read_pictures(asked({"ctrl_img": "a.png"}), Settings())


def test_alpha_is_kept_where_the_model_paints_by_it(read):
    sent = data_address(png(3, "RGBA"))
    assert read(sent).mode == "RGB"
    assert read(sent, "flex2", ctrl_idx=1).mode == "RGB"
    assert read(data_address(PICTURE), "flex2").mode == "RGB"
    painted = read(sent, "flex2")
    assert painted.mode == "RGBA" and np.array_equal(pixels(painted), pixels(png(3, "RGBA")))
    # of files the name decides, as in the trainer
    assert [read(name, "flex2").mode for name in ("a.png", "a.inpaint.png")] == ["RGB", "RGBA"]


def test_formats_that_start_other_programs_are_not_read(fails):
    file = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).save(file, "EPS")
    assert Image.open(file).format == "EPS"
    assert "no picture" in fails(base64.b64encode(file.getvalue()).decode())


def test_pictures_keep_their_order(settings):
    one, two, three = (data_address(png(seed)) for seed in (1, 2, 3))
    request = asked(
        {"ctrl_img_1": one, "ctrl_img_2": two, "ctrl_img_3": three},
        {},
        {"ctrl_img": two, "ctrl_img_1": two, "ctrl_img_2": ""},
    )
    found = read_pictures(request, settings)
    assert [len(images) for images in found] == [3, 0, 1]
    drawn = [image for images in found for image in images]
    for image, seed in zip(drawn, (1, 2, 3, 2), strict=True):
        assert np.array_equal(pixels(image), pixels(png(seed)))
    assert drawn[1] is drawn[3]  # and was read once


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"ctrl_img_2": TEXT}, "prompts.1.ctrl_img_2", "no ctrl_img_1 before it"),
        ({"ctrl_img": TEXT, "ctrl_img_3": TEXT}, "prompts.1.ctrl_img_3", "no ctrl_img_2 before"),
        ({"ctrl_img": TEXT, "ctrl_img_1": "a.png"}, "prompts.1.ctrl_img_1", "leave one of them"),
    ],
)
def test_gaps_and_doubts_are_refused(settings, fields, field, words):
    with pytest.raises(FieldError, match=words) as refused:
        read_pictures(asked({}, fields), settings)
    assert refused.value.field == field


def test_all_pictures_together_have_a_limit(settings, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_ALL_PIXELS", 2 * 40 * 30)
    sources = [data_address(png(seed)) for seed in (1, 2, 3)]
    same = [{"ctrl_img": source} for source in (*sources[:2], *sources[:2])]
    assert len(read_pictures(asked(*same), settings)) == 4
    with pytest.raises(InvalidInputError, match=r"prompts\.2\.ctrl_img: .*million pixels together"):
        read_pictures(asked(*({"ctrl_img": source} for source in sources)), settings)


class Pages(ThreadingHTTPServer):
    """An https server of this machine. pages: path -> bytes, or what answers a request."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.pages: dict[str, Any] = {}
        self.seen: list[str] = []

    def url(self, path: str, host: str = "pictures.test") -> str:
        return f"https://{host}:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append(self.headers["Accept"])
        page = self.server.pages.get(self.path[1:].partition("?")[0])
        if callable(page):
            page(self)
        else:
            self.say(200 if page else 404, page or b"")

    def say(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> Any:
    return pytest.importorskip("trustme", reason="trustme is not installed").CA()


@pytest.fixture
def site(authority) -> Iterator[Pages]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pictures.test").configure_cert(tls)
    site = Pages(tls)
    site.pages["a.png"] = PICTURE
    threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def network(authority) -> Network:
    """In which every name is this machine, but `inner.test`, which is one of a private network."""
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return Network(
        resolve=lambda host, port: ["10.0.0.1" if host == "inner.test" else "127.0.0.1"],
        is_allowed=lambda address: address == "127.0.0.1",
        ports=range(1, 65536),
        tls=lambda: tls,
        proxy=lambda host: None,
    )


def test_a_picture_is_fetched_once(settings, site, network):
    url = site.url("a.png")
    found = read_pictures(asked({"ctrl_img": url}, {"ctrl_img": url}), settings, network)
    assert np.array_equal(pixels(found[1][0]), pixels(PICTURE))
    assert site.seen == ["image/*"]


def test_a_redirect_is_followed_but_not_into_a_private_network(read, fails, site, network):
    site.pages["near"] = lambda page: page.say(302, b"", Location="/a.png")
    site.pages["inner"] = lambda page: page.say(302, b"", Location=site.url("a.png", "inner.test"))
    assert read(site.url("near"), network=network).size == (40, 30)
    message = fails(site.url("inner"), network=network)
    assert "inner.test is refused: its address (10.0.0.1) is private" in message


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (None, "pictures.test answered with status 404"),
        (b"<!DOCTYPE html>", "no picture that can be read"),
        (lambda page: page.say(200, PICTURE, Content_Length=40 * 2**20), "more than 32 MB"),
        (lambda page: page.say(200, PICTURE[:99], Content_Length=999), "ended after 99 of 999"),
        (lambda page: page.say(401, b"who?"), "status 401; check the address"),
    ],
)
def test_an_address_without_a_picture_is_refused(fails, site, network, page, words):
    site.pages["b.png"] = page
    assert words in fails(site.url("b.png?token=topsecret"), network=network)


def test_an_endless_answer_is_cut_off(fails, site, network, monkeypatch):
    def endless(page: Any) -> None:
        page.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:  # until the reader hangs up
            page.wfile.write(bytes(10_000))

    monkeypatch.setattr(pictures, "MAX_BYTES", 2**20)
    site.handle_error = lambda *_: None
    site.pages["b.png"] = endless
    assert "more than 1 MB" in fails(site.url("b.png"), network=network)


def test_an_answer_that_does_not_come_is_given_up(fails, site, network, monkeypatch):
    monkeypatch.setattr(pictures, "SECONDS", 0.3)
    site.pages["b.png"] = lambda _: time.sleep(1)
    began = time.monotonic()
    message = fails(site.url("b.png"), network=network)
    assert "took more than 0.3 seconds to come" in message and time.monotonic() - began < 0.9
