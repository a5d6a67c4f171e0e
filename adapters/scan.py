"""Which models an adapter file may be for, from its header: fast enough for a folder of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.errors import AdapterError
from ..core.specs import ModelSpec
from .endings import split_key
from .layouts import detect_layout
from .read import read_header

REMEMBERED = 50_000  # files


@dataclass(frozen=True)
class Scan:
    """What a file's header says. title: of the models it is for, or what it says of its base.

    models: ids of the models it is for; None if the names of its layers do not tell. base_model:
    what the trainer noted. readable: whether it is an adapter that can be read at all.
    """

    title: str = ""
    models: tuple[str, ...] | None = None
    base_model: str = ""
    readable: bool = True

    def fits(self, spec: ModelSpec, known: frozenset[str]) -> bool | None:
        """Whether it is for a model; None if it does not say.

        known: what the trainer notes as the base of any model.
        """
        if not self.readable:
            return False
        if self.models is not None:
            return spec.id in self.models
        if self.base_model in known:
            return self.base_model == spec.lora.base_model
        return None


def scan(path: str | Path) -> Scan:
    """What a file's header says; read again only after the file has changed.

    Never reads weights, and never raises for what is in a file.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return Scan(readable=False)
    return _scan(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=REMEMBERED)
def _scan(path: str, _mtime: int, _size: int) -> Scan:
    try:
        metadata, shapes = read_header(path)
    except AdapterError:
        return Scan(readable=False)
    if not shapes or not all(split_key(key)[1] for key in shapes):
        return Scan(readable=False)
    layout, noted = detect_layout(shapes), metadata.get("ss_base_model_version")
    base_model = noted if isinstance(noted, str) else ""
    if layout is None:
        return Scan(title=base_model, base_model=base_model)
    return Scan(layout.title, layout.models, base_model)
