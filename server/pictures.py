"""Control images out of requests: addresses, data addresses, base64, uploads, names of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .schemas import Prompt
from .settings import Settings


def read_pictures(prompts: Sequence[Prompt], settings: Settings) -> list[list[Any]]:
    """The control images of each prompt, RGB or RGBA of PIL, in their order."""
    return [[] for _ in prompts]
