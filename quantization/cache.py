"""Packed weights on disk, so that a model is quantized once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .scheme import Tensors

FORMAT = 1  # raise it when a scheme holds weights otherwise
ALIGNED = 64  # bytes
Shapes = Mapping[str, torch.Size]


class PackedCache:
    """The packed layers of one base: FOLDER/DIGEST/COMPONENT.safetensors.

    base: everything that decides them, as JSON can tell it; another one has other files.
    """

    def __init__(self, folder: Path, base: Any) -> None:
        text = json.dumps([FORMAT, base], sort_keys=True, default=str)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:24]

    def read(self, component: str, shapes: Shapes) -> dict[str, Tensors] | None:
        """Path of each layer -> how it is held; None unless all of them are there.

        Tensors stay in the mapped file, where they lie well in it. shapes: of the weights, by path.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(component), framework="pt") as file:
                if (file.metadata() or {}).get("layers") != _names(shapes):
                    return None
                found: dict[str, Tensors] = {path: {} for path in shapes}
                for key in file.keys():  # noqa: SIM118
                    path, _, name = key.rpartition(".")
                    found[path][name] = _aligned(file.get_tensor(key))
        except (SafetensorError, OSError, KeyError):  # damaged, or not there yet
            return None
        return found if all(found.values()) else None

    def write(self, component: str, shapes: Shapes, layers: Mapping[str, Tensors]) -> None:
        """Keeps them; a reader finds all of it or nothing. What cannot be written is not kept."""
        from safetensors.torch import save_file

        tensors = {
            f"{path}.{name}": tensor.contiguous()
            for path, held in layers.items()
            for name, tensor in held.items()
        }
        part = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
            os.close(handle)
            save_file(tensors, part, metadata={"layers": _names(shapes)})
            os.replace(part, self._file(component))
        except OSError:  # a full disk costs the next load some time, not this one its result
            if part is not None:
                Path(part).unlink(missing_ok=True)

    def _file(self, component: str) -> Path:
        return self._folder / f"{component}.safetensors"


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    # kernels of torch crash at numbers that start elsewhere in memory
    return tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone()


def _names(shapes: Shapes) -> str:
    return json.dumps({path: list(shape) for path, shape in sorted(shapes.items())})
