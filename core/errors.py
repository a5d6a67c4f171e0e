"""Errors a user can meet: each says what was wrong, what was received, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class AitkError(Exception):
    """Base of every error this package raises on purpose.

    code: stable machine-readable name. http_status: answer of the server.
    exit_code: of the command line; 2 means the input was bad.
    """

    code = "error"
    http_status = 500
    exit_code = 1


class InvalidInputError(AitkError):
    code, http_status, exit_code = "invalid_input", 400, 2


class UnknownModelError(InvalidInputError):
    code, http_status = "model_not_found", 404


class AdapterError(InvalidInputError):
    """The adapter file is unreadable, of an unknown layout, or made for another model."""

    code = "bad_adapter"


class CheckpointError(InvalidInputError):
    """The model's weights are missing, incomplete or of another model."""

    code = "bad_checkpoint"


class DownloadError(InvalidInputError):
    """A link is refused, or what it leads to could not be fetched; partial files are kept."""

    code = "download_failed"


class MissingDependencyError(AitkError):
    code, http_status = "missing_dependency", 501


class OutputError(AitkError):
    """The result could not be written; nothing is left half-written."""

    code, http_status = "output_failed", 507


class CancelledError(AitkError):
    code, http_status = "cancelled", 499


class ServerUnavailableError(AitkError):
    code, http_status = "server_unavailable", 503


class RemoteError(AitkError):
    """Another server accepted the work and failed at it."""

    code, http_status = "remote_failed", 502


def one_of(what: str, received: object, allowed: Iterable[object]) -> InvalidInputError:
    """The error for a value outside a fixed list, naming the list."""
    names = ", ".join(str(value) for value in allowed)
    return InvalidInputError(f"unknown {what} {received!r}; allowed: {names}")
