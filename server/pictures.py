"""Control images out of requests: addresses, data addresses, base64, uploads, names of files."""

from __future__ import annotations

import base64
import binascii
import re
import time
from pathlib import Path
from typing import Any

from ..core.errors import AitkError, DownloadError, InvalidInputError
from ..engine._http import Answer, Network, open_url
from ..engine.control_images import MAX_PIXELS, decode_control_image, read_control_image
from ..pipelines._registry import get_model
from .errors import FieldError
from .schemas import InferenceRequest, Prompt
from .settings import Settings
from .translate import inside

MAX_BYTES = 32 * 2**20  # of a picture behind an address
SECONDS = 60.0  # for all that a request names
MAX_ALL_PIXELS = 4 * MAX_PIXELS  # of a request: 0.8 GB in memory
MAX_NAME = 1_000  # characters
CHUNK = 2**16
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
DATA_ADDRESS = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
SOURCES = (
    "an https:// address, data:image/...;base64, followed by base64, base64 alone, or a name in "
    "the server's picture folder"
)


def read_pictures(
    request: InferenceRequest, settings: Settings, network: Network | None = None
) -> list[list[Any]]:
    """The control images of each prompt, RGB or RGBA of PIL, in their order.

    Raises FieldError for one that cannot be had, and where one is left out before another.
    """
    asked = [_sources(f"prompts.{index}", prompt) for index, prompt in enumerate(request.prompts)]
    if not any(asked):
        return [[] for _ in asked]
    model = request.model or settings.model
    takes_alpha = bool(model) and get_model(model).control_images.alpha
    reader = PictureReader(settings, network)
    return [
        [reader.read(field, text, takes_alpha and not prompt.ctrl_idx) for field, text in sources]
        for prompt, sources in zip(request.prompts, asked, strict=True)
    ]


class PictureReader:
    """Reads the pictures of one request: each once, all of them within a time and a size.

    Of what is sent or fetched the alpha is kept where the caller asks for it, and of files in the
    picture folder where their name has `.inpaint.`, as in the trainer.
    """

    def __init__(self, settings: Settings, network: Network | None = None) -> None:
        self._folder, self._network = settings.picture_folder, network or Network()
        self._deadline = time.monotonic() + SECONDS
        self._pixels_left = MAX_ALL_PIXELS
        self._known: dict[tuple[str | bytes, bool], Any] = {}

    def read(self, field: str, source: str | bytes, keep_alpha: bool) -> Any:
        """A picture as RGB, or RGBA if its alpha is kept. source: as in SOURCES, or a file's bytes.

        field: where the request has it. Raises FieldError.
        """
        if (source, keep_alpha) not in self._known:
            try:
                self._known[source, keep_alpha] = self._counted(self._load(source, keep_alpha))
            except AitkError as error:
                raise FieldError(field, error) from error
        return self._known[source, keep_alpha]

    def _counted(self, image: Any) -> Any:
        self._pixels_left -= image.width * image.height
        if self._pixels_left < 0:
            raise InvalidInputError(
                f"the pictures of a request may have {MAX_ALL_PIXELS // 10**6} million pixels "
                "together; send smaller ones, or fewer prompts in one request"
            )
        return image

    def _load(self, source: str | bytes, keep_alpha: bool) -> Any:
        if isinstance(source, bytes):
            return decode_control_image(source, "the picture", keep_alpha)
        if ADDRESS.match(source):
            data = _fetch(source, self._network, self._deadline)
        elif source[:5].lower() == "data:":
            data = _data_of(source)
        elif (file := self._file(source)) is not None:
            return read_control_image(file)
        else:
            data = self._decoded(source)
        return decode_control_image(data, "the picture", keep_alpha)

    def _file(self, name: str) -> Path | None:
        if self._folder is None or not 0 < len(name) <= MAX_NAME:
            return None
        path = inside(self._folder, name)
        return self._folder / name if path is not None and path.is_file() else None

    def _decoded(self, text: str) -> bytes:
        if (data := _from_base64(text)) is not None:
            return data
        folder = "" if self._folder else ", which it has not (AITK_PICTURE_PATH)"
        raise InvalidInputError(f"{text[:80]!r} is no picture; give {SOURCES}{folder}")


def _sources(where: str, prompt: Prompt) -> list[tuple[str, str]]:
    """(field, text) of each picture of a prompt."""
    both = prompt.ctrl_img and prompt.ctrl_img_1
    if both and prompt.ctrl_img != prompt.ctrl_img_1:
        raise FieldError(
            f"{where}.ctrl_img_1", "ctrl_img is the first picture as well; leave one of them out"
        )
    names = ("ctrl_img" if prompt.ctrl_img else "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
    given = [bool(text) for text in prompt.pictures]
    for left_out, later in ((0, 1), (1, 2)):
        if given[later] and not given[left_out]:
            raise FieldError(
                f"{where}.{names[later]}",
                f"there is no {names[left_out]} before it; give the pictures from the first one on",
            )
    pairs = zip(names, prompt.pictures, strict=True)
    return [(f"{where}.{name}", text) for name, text in pairs if text]


def _data_of(address: str) -> bytes:
    head = DATA_ADDRESS.match(address)
    data = _from_base64(address[head.end() :]) if head else None
    if data is None:
        raise InvalidInputError(
            f"{address[:40]!r} is no data address of a picture; it begins with "
            "data:image/png;base64, and goes on in base64"
        )
    return data


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _fetch(address: str, network: Network, deadline: float) -> bytes:
    headers = {"Accept": "image/*"}
    try:
        with open_url(address, headers, None, network, deadline) as answer:
            return _body(answer)
    except DownloadError as error:
        if time.monotonic() > deadline:
            raise DownloadError(
                f"the pictures took more than {SECONDS:g} seconds to come; send them along instead"
            ) from error
        raise


def _body(answer: Answer) -> bytes:
    if answer.status != 200:
        raise DownloadError(
            f"{answer.host} answered with status {answer.status}; check the address, it has to "
            "lead to the picture without a login"
        )
    promised = answer.response.length
    data = bytearray()
    while len(data) <= MAX_BYTES and (promised or 0) <= MAX_BYTES and (part := answer.read(CHUNK)):
        data += part
    if max(len(data), promised or 0) > MAX_BYTES:
        raise DownloadError(
            f"the picture at {answer.host} has more than {MAX_BYTES // 2**20} MB; make it smaller"
        )
    if promised is not None and len(data) < promised:
        raise DownloadError(
            f"{answer.host} ended after {len(data)} of {promised} bytes; try again, or send the "
            "picture along"
        )
    return bytes(data)
