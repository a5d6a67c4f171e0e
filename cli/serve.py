"""`aitk serve`: the HTTP server, with a flag for every setting."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.errors import MissingDependencyError, ServerUnavailableError
from ..core.missing import pip_command
from ..server.settings import SETTINGS, Setting, Settings, read_settings
from .commands import open_device, say

PACKAGES = (
    "fastapi",
    "prometheus-client",
    "pydantic",
    "python-multipart",
    "starlette",
    "uvicorn",
)
EXTRA = "ai-toolkit-inference[server]"
CACHE = "HF_HUB_CACHE"  # read once, when huggingface_hub is imported


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; it wins over the environment's variable."""
    for setting in SETTINGS:
        parser.add_argument(setting.flag, help=_help(setting), **_kind(setting))


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Answers until Ctrl-C or SIGTERM. Raises AitkError for what keeps it from starting."""
    check_packages()
    settings = read_settings(os.environ, _given(options))
    if settings.model_cache is not None:
        os.environ[CACHE] = str(settings.model_cache.resolve())
    from ..server.listening import Listener, open_socket

    with open_socket(settings.host, settings.port) as socket:
        open_device(settings.device or None)
        from ..server.app import create_app

        _log(settings.debug)
        app, port = create_app(settings), socket.getsockname()[1]
        level = "debug" if settings.debug else "warning"
        listener = Listener(app, level, lambda: _tell(settings, port))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            listener.run(sockets=[socket])
        except KeyboardInterrupt:  # raised once more when everything has stopped
            if not listener.started:
                raise
    if not listener.started:
        raise ServerUnavailableError("the server did not start; the lines above say why")
    say("stopped; requests that wait are drawn after the next start")
    return {}


def missing_packages() -> list[str]:
    """The server's packages that are not installed."""
    return [name for name in PACKAGES if not _is_installed(name)]


def check_packages() -> None:
    """Raises MissingDependencyError unless the server's packages are there."""
    if missing := missing_packages():
        raise MissingDependencyError(
            f"the server needs {', '.join(missing)}; run `{pip_command(EXTRA)}`"
        )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _help(setting: Setting) -> str:
    text = f"{setting.text} ({setting.env}{setting.usual and f'; {setting.usual}'})"
    return text.replace("%", "%%")


def _kind(setting: Setting) -> dict[str, Any]:
    if setting.kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if setting.kind is Path:
        return {"metavar": "FILE" if setting.name.endswith("_file") else "DIR"}
    return {"metavar": "N" if setting.kind is int else "VALUE"}


def _given(options: argparse.Namespace) -> Mapping[str, str]:
    values = {setting.name: getattr(options, setting.name) for setting in SETTINGS}
    return {name: str(value) for name, value in values.items() if value is not None}


def _log(debug: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    level = logging.DEBUG if debug else logging.INFO
    logging.getLogger("ai_toolkit_inference").setLevel(level)


def _tell(settings: Settings, port: int) -> None:
    for warning in warnings(settings):
        sys.stderr.write(f"aitk: warning: {warning}\n")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    say(f"listening at http://{host}:{port}, docs at http://{near}:{port}/docs")
    sys.stdout.flush()


def warnings(settings: Settings) -> list[str]:
    """What whoever starts a server with these settings should know."""
    found = []
    if settings.api_key_file is None and not _is_this_machine(settings.host):
        found.append(
            f"anybody who reaches {settings.host} can draw, and see what others drew; give "
            "--api-key-file FILE, or listen at 127.0.0.1"
        )
    folders = (settings.lora_folder, settings.weights_folder, settings.picture_folder)
    found += [f"there is no folder {folder}" for folder in folders if _is_missing(folder)]
    return found


def _is_missing(folder: Path | None) -> bool:
    return folder is not None and not folder.is_dir()


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
