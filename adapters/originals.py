"""The base weights that adapters changed, as they were loaded.

They are read again from the checkpoint's mapped file; only what is not in it bit for bit is copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Original:
    """One parameter as loaded: a copy, or a tensor of a mapped file whose stamp is watched."""

    module: torch.nn.Module
    name: str
    value: torch.Tensor
    file: Path | None = None
    stamp: Stamp | None = None

    @property
    def parameter(self) -> torch.Tensor:
        """The parameter in the model, as it is now."""
        return getattr(self.module, self.name)

    def read(self) -> torch.Tensor:
        """Its loaded value, on the CPU.

        Raises CheckpointError if the file was changed since: the value is lost then.
        """
        if self.file is not None and _stamp(self.file) != self.stamp:
            raise CheckpointError(
                f"{self.file} was changed while its model was in memory, so the weights under "
                "the adapter cannot be restored from it; ask again, and the model is loaded anew"
            )
        return self.value.to(self.parameter.dtype)

    def restore(self) -> None:
        """Puts the loaded value back into the model."""
        self.parameter.copy_(self.read())


class StoredWeights:
    """The tensors of a checkpoint's files, mapped, not read.

    folders: component name -> folder with its .safetensors files, in which tensors are named as
    in the module.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._tensors: dict[str, dict[str, tuple[Path, Any, str]]] = {}
        self._stamps: dict[Path, Stamp | None] = {}

    def original(self, path: str, module: torch.nn.Module, name: str) -> Original:
        """The parameter `name` of the module at component.path, for restoring it later.

        It must be as loaded now. Shares the file's memory where the file holds these very bits.
        """
        parameter = getattr(module, name)
        component, _, inner = path.partition(".")
        found = self._find(component, f"{inner}.{name}")
        if found is not None:
            file, value = found
            if _same_bits(value.to(parameter.dtype), parameter):
                return Original(module, name, value, file, self._stamps[file])
        return Original(module, name, parameter.detach().to("cpu", copy=True))

    def _find(self, component: str, key: str) -> tuple[Path, torch.Tensor] | None:
        if component not in self._folders:
            return None
        if component not in self._tensors:
            self._tensors[component] = self._map(self._folders[component])
        tensors = self._tensors[component]
        # transformers 5.8 and newer dropped the `text_model` level that files still have
        for spelled in (key, f"text_model.{key}"):
            if spelled in tensors:
                file, opened, name = tensors[spelled]
                if _stamp(file) != self._stamps[file]:  # a page that was cut off kills the process
                    return None
                return file, opened.get_tensor(name)
        return None

    def _map(self, folder: Path) -> dict[str, tuple[Path, Any, str]]:
        from safetensors import SafetensorError, safe_open

        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._stamps[file] = _stamp(file)
            try:
                opened: Any = safe_open(file, framework="pt").__enter__()  # open while this lives
            except (SafetensorError, OSError):  # the model was not loaded from it
                continue
            tensors |= {name: (file, opened, name) for name in opened.keys()}  # noqa: SIM118
        return tensors


def _stamp(file: Path) -> Stamp | None:
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        return None
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    # torch.equal calls 0.0 and -0.0 equal
    if a.shape != b.shape:
        return False
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.detach().cpu().contiguous().view(integer))
