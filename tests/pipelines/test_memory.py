"""While weights are read, host memory holds them once: no more than a tenth on top."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ai_toolkit_inference import list_models
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._loading import LoadedModel, load_model

MAPS = Path("/proc/self/maps")
MOST = 1.1  # of the weights
SMALL = 1024  # bytes; not looked up whether they are mapped


class Allocated(TorchDispatchMode):
    """Bytes of the storages that operators made on the CPU and that are alive, and their peak.

    Parts of a mapped file do not count: the system takes such pages back when it needs memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        for storage in storages(output):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.alive:
                size = 0 if size > SMALL and in_a_file(storage.data_ptr()) else size
                self.alive[key] = (StorageWeakRef(storage), size)
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return output


def storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
            yield leaf.untyped_storage()


def in_a_file(address: int) -> bool:
    for line in MAPS.read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address < end:
                return True
    return False


def stored_sizes(folder: Path) -> list[int]:
    """Elements of every tensor in a checkpoint's files."""
    sizes = []
    for path in folder.glob("*/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes = (file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118
            sizes += [torch.Size(shape).numel() for shape in shapes]
    return sizes


def tables(model: LoadedModel) -> int:
    """Bytes of tensors that modules keep beside weights: rotary angles, a few MB in any model."""
    parts = [part for module in model.modules.values() for part in module.modules()]
    values = [value for part in parts for value in vars(part).values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_no_weight_is_in_memory_twice(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # operators of one thread are seen
    folder = tiny_folder(spec)
    sizes = stored_sizes(folder)
    with Allocated() as allocated:
        model = load_model(spec, folder, None, "bf16", torch.device("cpu"))
    # the files are in fp32, so that every tensor is converted; one of them at a time
    assert allocated.peak <= MOST * 2 * sum(sizes) + 4 * max(sizes) + tables(model)
