"""Errors of the server, and how every error reaches a client."""

from __future__ import annotations

import logging
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..core.errors import AitkError, InvalidInputError, ServerUnavailableError

log = logging.getLogger("ai_toolkit_inference")
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
HINTS = {"hf_token": "the server takes HF_TOKEN from its own environment"}
SHOWN = (str, int, float, bool, type(None))  # what a client sent of these is told in errors


class NotFoundError(InvalidInputError):
    code, http_status = "not_found", 404


class UnknownRequestError(NotFoundError):
    code = "request_not_found"


class FolderInUseError(InvalidInputError):
    code, http_status = "folder_in_use", 409


class UnauthorizedError(InvalidInputError):
    code, http_status = "invalid_api_key", 401


class ForbiddenError(InvalidInputError):
    code, http_status = "admin_key_required", 403


class TooLargeError(InvalidInputError):
    code, http_status = "request_too_large", 413


class FullQueueError(AitkError):
    code, http_status = "queue_full", 429


class InterruptedRequestError(AitkError):
    """The server stopped while it drew."""

    code, http_status = "server_restarted", 503


class TimeoutReachedError(AitkError):
    code, http_status = "timeout", 504


class FieldError(InvalidInputError):
    """A field of a body is wrong. field: its path, as prompts.0.ctrl_img."""

    def __init__(self, field: str, cause: AitkError | str) -> None:
        super().__init__(f"{field}: {cause}")
        self.field = field
        if isinstance(cause, AitkError):
            self.code, self.http_status = cause.code, cause.http_status


def as_raised(said: dict[str, Any]) -> AitkError:
    """The error that body_of has made `said` of."""
    error = AitkError(said["message"])
    error.code, error.http_status = said["code"], _statuses().get(said["code"], 500)
    return error


def _statuses(kind: type[AitkError] = AitkError) -> dict[str, int]:
    found = {kind.code: kind.http_status}
    for narrower in kind.__subclasses__():
        found |= _statuses(narrower)
    return found


class ErrorText(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorText
    detail: dict[str, Any]


# what may go well a little later; all else would fail again
PASSING = (FullQueueError.code, InterruptedRequestError.code, ServerUnavailableError.code)
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused: the message says what to do"},
    "5XX": {"model": ErrorAnswer, "description": "The server could not"},
}


def body_of(error: AitkError, param: str | None = None) -> dict[str, Any]:
    """What a client is sent: OpenAI's shape, and beside it that of the trainer's community API."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    message = str(error).encode(errors="backslashreplace").decode()  # halves of surrogate pairs
    said = {"message": message, "type": kind, "param": param, "code": error.code}
    detail = {"code": error.code.upper(), "message": message, "details": {}}
    return {"error": said, "detail": {"error": detail}}


def answer(error: AitkError, param: str | None = None) -> JSONResponse:
    """The error as an answer."""
    headers = {} if error.code in PASSING else {"X-Should-Retry": "false"}  # OpenAI's clients ask
    if isinstance(error, FullQueueError):
        headers["Retry-After"] = "10"
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error, param), error.http_status, headers)


def install(app: FastAPI) -> None:
    """Makes the application answer every error in one shape."""

    @app.exception_handler(AitkError)
    async def _known(_: Request, error: AitkError) -> JSONResponse:
        return answer(error, getattr(error, "field", None))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        message = "; ".join(_one(problem) for problem in problems[:3])
        return answer(InvalidInputError(message), _where(problems[0]) or None)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        refused = NotFoundError(message)
        refused.http_status = error.status_code
        refused.code = HTTP_CODES.get(error.status_code, "bad_request")
        return JSONResponse(body_of(refused), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(AitkError(f"{type(error).__name__} in the server; its log says more"))


def _where(problem: Any) -> str:
    if problem["type"] == "json_invalid":
        return ""
    text = ".".join(str(part) for part in problem["loc"][1:])
    return text[:200].encode(errors="backslashreplace").decode()


def _one(problem: Any) -> str:
    where, kind = _where(problem) or "the body", problem["type"]
    if kind == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}"
    if kind == "value_error":  # of a validator of ours
        return f"{where}: {problem['ctx']['error']}"
    if len(problem["loc"]) == 1 and kind != "missing":
        return "the body has to be a JSON object, with Content-Type: application/json"
    if kind == "extra_forbidden":  # its value may be a secret
        return f"{where}: there is no such field; {HINTS.get(where, 'see /docs')}"
    received = problem.get("input")
    shown = f" (received {str(received)[:80]!r})" if isinstance(received, SHOWN) else ""
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{shown}"
