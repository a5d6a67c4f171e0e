"""An adapter file, parsed: its layers, metadata and content hash. Nothing is bound yet."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..core.errors import AdapterError

# down-weight ending -> up-weight ending of the two spellings the trainer writes
SPELLINGS = {
    ".lora_down.weight": ".lora_up.weight",  # kohya, with .alpha
    ".lora_A.weight": ".lora_B.weight",  # peft, without
}
ALPHA = ".alpha"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class LoraLayer:
    """One layer of an adapter: delta = up @ down * alpha / rank.

    name: as in the file, without the ending. down: (rank, in, ...). up: (out, rank, ...).
    alpha: None if the file has none.
    """

    name: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @cached_property
    def is_zero(self) -> bool:
        """Whether it adds nothing, as every layer of an untrained LoRA."""
        return not (self.up.any() and self.down.any())


@dataclass(frozen=True)
class Adapter:
    """A parsed adapter file. digest: SHA-256 of its bytes."""

    path: str
    digest: str
    metadata: dict[str, str]
    layers: tuple[LoraLayer, ...]

    @property
    def effective(self) -> bool:
        """Whether it can change anything: some layer's up and down weights are not all zero."""
        return not all(layer.is_zero for layer in self.layers)


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a .safetensors file the trainer wrote.

    Raises AdapterError, before any tensor is used, for a missing, truncated or pickled file, a
    key of unknown form, a layer that lacks a half, and values that are not finite.
    """
    path = Path(path)
    tensors, metadata = _read_tensors(path)
    return Adapter(str(path), file_digest(path), metadata, _layers(path, tensors))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        _refuse_other_files(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except OSError as error:
        raise AdapterError(f"{path} could not be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise AdapterError(
            f"{path} is not a complete .safetensors file ({error}); copy or download it again"
        ) from error


def _refuse_other_files(path: Path) -> None:
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise AdapterError(f"there is no LoRA file {path}; check the name and the folder")
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(PICKLE_STARTS):
        raise AdapterError(
            f"{path} is a pickled PyTorch file, which can run code when loaded; "
            "convert it to .safetensors"
        )
    if path.suffix.lower() != ".safetensors":
        raise AdapterError(f"{path} is not a .safetensors file; only those are read")


def _layers(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[LoraLayer, ...]:
    layers, used = [], set()
    for key in sorted(tensors):
        for down_ending, up_ending in SPELLINGS.items():
            name = key.removesuffix(down_ending)
            if name == key or name + up_ending not in tensors:
                continue
            keys = {key, name + up_ending, name + ALPHA} & tensors.keys()
            used |= keys
            layers.append(
                _layer(
                    path, name, *(tensors.get(name + e) for e in (down_ending, up_ending, ALPHA))
                )
            )
    unknown = sorted(tensors.keys() - used)
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise AdapterError(f"{path}: {twice} is in it both as lora_down/lora_up and lora_A/lora_B")
    if unknown or not layers:
        raise AdapterError(
            f"{path}: {len(unknown)} of {len(tensors)} tensors are no LoRA weights this version "
            f"reads, e.g. {', '.join(unknown[:3]) or 'none at all'}; it reads lora_down/lora_up "
            "and lora_A/lora_B pairs with alpha"
        )
    return tuple(layers)


def _layer(
    path: Path,
    name: str,
    down: torch.Tensor | None,
    up: torch.Tensor | None,
    alpha: torch.Tensor | None,
) -> LoraLayer:
    assert down is not None
    assert up is not None
    for what, tensor in (("down", down), ("up", up)):
        if tensor.dtype not in DTYPES or tensor.dim() not in (2, 4):
            raise AdapterError(
                f"{path}: {name} has a {what} weight of {tensor.dtype}, shape "
                f"{list(tensor.shape)}; it must be fp32, fp16 or bf16 with 2 or 4 dimensions"
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"{path}: {name} holds NaN or infinite values, so the training diverged or the "
                "file is damaged; use an earlier checkpoint"
            )
    if up.shape[1] != down.shape[0]:
        raise AdapterError(
            f"{path}: {name} has rank {down.shape[0]} on one side and {up.shape[1]} on the other"
        )
    if not down.numel() or not up.numel():
        raise AdapterError(f"{path}: {name} holds no values; copy or download the file again")
    if alpha is not None and (alpha.numel() != 1 or not torch.isfinite(alpha).all()):
        raise AdapterError(f"{path}: {name} has an alpha that is not one finite number")
    return LoraLayer(name, down, up, None if alpha is None else float(alpha.float()))
