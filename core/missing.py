"""The exact commands that install what is missing, for the Python that runs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
DIFFUSERS = "diffusers>=0.39,<0.43"
PLAIN = re.compile(r"[\w.:\\/+=-]+")


def pip_command(*requirements: str) -> str:
    """The command that installs packages beside those that are there."""
    return _command("-m", "pip", "install", *requirements)


def install_command() -> str:
    """The command that installs diffusers and the trainer's code, from any folder."""
    return _command(str(PACK / "install.py"))


def _command(*arguments: str) -> str:
    # ComfyUI's portable build runs with -s
    return _joined([sys.executable, *(["-s"] if sys.flags.no_user_site else []), *arguments])


def _joined(words: Sequence[str]) -> str:
    if sys.platform != "win32":
        return shlex.join(words)
    # cmd takes < and > for redirections, unless they are in double quotes
    return " ".join(word if PLAIN.fullmatch(word) else f'"{word}"' for word in words)
