"""Who may ask, and how much a request may weigh."""

from __future__ import annotations

import hmac
from pathlib import Path

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.errors import InvalidInputError
from .errors import ForbiddenError, TooLargeError, UnauthorizedError, answer

MIN_KEY = 16  # characters


class Keys:
    """The keys of clients and of administrators; an administrator's key opens everything."""

    def __init__(self, api_file: Path | None, admin_file: Path | None) -> None:
        self._api, self._admin = _read_keys(api_file), _read_keys(admin_file)

    @property
    def asked_for(self) -> bool:
        """Whether anybody needs a key to draw."""
        return bool(self._api)

    def check(self, request: Request) -> None:
        """Raises UnauthorizedError unless the request carries a key, or none is needed."""
        if self._api and not _among(_bearer(request), (*self._api, *self._admin)):
            raise UnauthorizedError(
                "no valid API key; send the header `Authorization: Bearer KEY` with a key of this "
                "server's key file"
            )

    def check_admin(self, request: Request) -> None:
        """The same for changes to the server. Raises ForbiddenError for a key of a client."""
        self.check(request)
        if self._admin and not _among(_bearer(request), self._admin):
            raise ForbiddenError("this changes the server for everybody; it takes an admin key")


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InvalidInputError(f"the key file {file} cannot be read: {reason}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys or any(len(key) < MIN_KEY for key in keys):
        raise InvalidInputError(
            f"the key file {file} needs at least one key, each of {MIN_KEY} characters or more, "
            "one a line"
        )
    return keys


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _among(key: str, keys: tuple[str, ...]) -> bool:
    # all are compared, each in constant time
    return any([hmac.compare_digest(key.encode(), known.encode()) for known in keys])


class BodyLimit:
    """Refuses bodies above a size, whether or not they say how long they are."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = TooLargeError(
            f"the request has more than {self._most // 2**20} MB; allowed are as many: send fewer "
            "or smaller pictures, or start the server with a larger AITK_MAX_BODY_MB"
        )
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            await answer(error)(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise error
            return message

        async def told(message: Message) -> None:
            if came <= self._most:  # else it is what the application makes of the error
                await send(message)

        await self._app(scope, counted, told)
        if came > self._most:
            await answer(error)(scope, receive, send)
