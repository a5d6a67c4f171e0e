"""Errors of the server, and how every error reaches a client."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..core.errors import AitkError, InvalidInputError

log = logging.getLogger("ai_toolkit_inference")


class NotFoundError(InvalidInputError):
    code, http_status = "not_found", 404


class UnauthorizedError(InvalidInputError):
    code, http_status = "invalid_api_key", 401


class ForbiddenError(InvalidInputError):
    code, http_status = "admin_key_required", 403


class TooLargeError(InvalidInputError):
    code, http_status = "request_too_large", 413


class ConflictError(InvalidInputError):
    code, http_status = "conflict", 409


class FullQueueError(AitkError):
    code, http_status = "queue_full", 429


class InterruptedRequestError(AitkError):
    """The server stopped while it drew."""

    code, http_status = "server_restarted", 503


class TimeoutReachedError(AitkError):
    code, http_status = "timeout", 504


def body_of(error: AitkError, param: str | None = None) -> dict[str, Any]:
    """What a client is sent: OpenAI's shape, and beside it that of the trainer's community API."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    message = str(error)
    said = {"message": message, "type": kind, "param": param, "code": error.code}
    detail = {"code": error.code.upper(), "message": message, "details": {}}
    return {"error": said, "detail": {"error": detail}}


def answer(error: AitkError, param: str | None = None) -> JSONResponse:
    """The error as an answer."""
    headers = {}
    if isinstance(error, FullQueueError):
        headers["Retry-After"] = "10"
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error, param), error.http_status, headers)


def install(app: FastAPI) -> None:
    """Makes the application answer every error in one shape."""

    @app.exception_handler(AitkError)
    async def _known(_: Request, error: AitkError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = "; ".join(_one(problem) for problem in error.errors()[:3])
        return answer(InvalidInputError(message), where or None)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        refused = NotFoundError(message)
        refused.http_status = error.status_code
        refused.code = "not_found" if error.status_code == 404 else "bad_request"
        return JSONResponse(body_of(refused), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(AitkError(f"{type(error).__name__} in the server; its log says more"))


def _one(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"][1:]) or "the body"
    received = problem.get("input")
    shown = f" (received {str(received)[:80]!r})" if not isinstance(received, dict | list) else ""
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{shown}"
