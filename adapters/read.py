"""An adapter file, parsed: its layers, metadata and content hash. Nothing is bound yet."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..core.errors import AdapterError
from .dora import DoraLayer
from .endings import split_key
from .full import DiffLayer, FullRankLayer
from .layer import Layer
from .lokr import LokrLayer
from .lora import LoraLayer
from .peft import alphas, read_config

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PEFT_FILE = "adapter_model.safetensors"
MAX_HEADER = 100 << 20  # bytes; a longer one is none for safetensors either

# What the trainer does not write, and why it is not read.
REFUSED = {
    "dora_scale": "LyCORIS's DoRA, which normalizes the weights in another way",
    "lora_mid.weight": "a Tucker (CP) decomposition",
    "lokr_t2": "a Tucker (CP) decomposition",
    "lokr_w1_a": "a LoKr whose first factor is decomposed too",
    "lokr_w1_b": "a LoKr whose first factor is decomposed too",
    "hada_w1_a": "LoHa",
    "hada_w1_b": "LoHa",
    "hada_w2_a": "LoHa",
    "hada_w2_b": "LoHa",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "on_input": "(IA)^3",
    "a1.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "set_weight": "replaced weights",
    "emb_params": "a textual inversion embedding",
}
DIMENSIONS = {
    "magnitude": (1,),
    "w1": (2,),
    "w2_a": (2,),
    "w2_b": (2,),
    "diff": (1, 2, 3, 4, 5),
    "diff_b": (1,),
}
# The parts of a layer, alpha aside -> its kind.
KINDS: dict[frozenset[str], type[Layer]] = {
    frozenset({"down", "up"}): LoraLayer,
    frozenset({"down", "up", "magnitude"}): DoraLayer,
    frozenset({"w1", "w2"}): LokrLayer,
    frozenset({"w1", "w2_a", "w2_b"}): LokrLayer,
    frozenset({"down"}): FullRankLayer,
    frozenset({"diff"}): DiffLayer,
    frozenset({"diff", "diff_b"}): DiffLayer,
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """A parsed adapter file. digest: SHA-256 of its bytes. spelling: of its keys."""

    path: str
    digest: str
    metadata: dict[str, str]
    layers: tuple[Layer, ...]
    spelling: str
    shapes: Mapping[str, tuple[int, ...]]  # key -> shape, as in the file

    @property
    def effective(self) -> bool:
        """Whether it can change anything: not all of its layers are zero."""
        return not all(layer.is_zero for layer in self.layers)

    @property
    def live_only(self) -> bool:
        """Whether some of its layers cannot be merged."""
        return not all(layer.can_merge for layer in self.layers)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors())


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a .safetensors file, or in a peft folder with adapter_config.json.

    It is read into memory whole, so that a training that writes the file anew disturbs nothing.
    Raises AdapterError, before any tensor is used, for a missing, truncated or pickled file, a
    key of unknown form, a layer that lacks a half, and values that are not finite.
    """
    path = Path(path)
    file = path / PEFT_FILE if os.path.isdir(path) else path
    metadata, data = _read_bytes(file)
    digest = hashlib.sha256(data).hexdigest()
    tensors = _parse(file, data)
    config = read_config(file)
    layers, spelling = _layers(file, tensors, alphas(file, config, metadata))
    if config is not None:
        both = f"{digest} {json.dumps(config, sort_keys=True)}"
        digest = hashlib.sha256(both.encode()).hexdigest()
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Adapter(str(path), digest, metadata, layers, spelling, shapes)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file, from its header alone; raises as read_header does."""
    return read_header(path)[0]


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata of a .safetensors file, and its tensors' shapes by their keys.

    Only the header is read. Raises AdapterError if the file is missing, no such file, or cut off.
    """
    path = Path(path)
    try:
        _refuse_other_files(path)
        with path.open("rb") as opened:
            header = _header(path, opened)
    except OSError as error:
        raise AdapterError(f"{path} could not be read: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", None) or {}
    try:
        return metadata, {key: tuple(entry["shape"]) for key, entry in header.items()}
    except (KeyError, TypeError) as error:
        raise _incomplete(path, error) from error


def _read_bytes(file: Path) -> tuple[dict[str, str], bytes]:
    # metadata, whole file; the data only of what its header calls an adapter, for a checkpoint
    # that was chosen by mistake may not fit into memory
    try:
        _refuse_other_files(file)
        with file.open("rb") as opened:
            header = _header(file, opened)
            metadata = header.pop("__metadata__", None) or {}
            unknown = sorted(key for key in header if not split_key(key)[1])
            if unknown or not header:
                raise AdapterError(_unknown_text(file, unknown, len(header)))
            opened.seek(0)
            return metadata, opened.read()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise AdapterError(f"{file} could not be read: {reason}") from error


def _header(file: Path, opened: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(opened.read(8), "little")
    text = opened.read(min(length, MAX_HEADER))
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        ends = (entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__")
        if 8 + length + max(ends, default=0) != os.path.getsize(file):
            raise ValueError("its size is not what its header says")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _incomplete(file, error) from error
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is twice in its header")
    return found


def _incomplete(file: Path, error: Exception) -> AdapterError:
    return AdapterError(
        f"{file} is not a complete .safetensors file ({error}); copy or download it again"
    )


def _refuse_other_files(file: Path) -> None:
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise AdapterError(f"there is no LoRA file {file}; check the name and the folder")
    with file.open("rb") as opened:
        start = opened.read(8)
    if start.startswith(PICKLE_STARTS):
        raise AdapterError(
            f"{file} is a pickled PyTorch file, which can run code when loaded; "
            "convert it to .safetensors"
        )
    if file.suffix.lower() != ".safetensors":
        raise AdapterError(f"{file} is not a .safetensors file; only those are read")


def _parse(file: Path, data: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    # KeyError and TypeError: a dtype that this torch does not have
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(file, error) from error


def _layers(
    file: Path, tensors: dict[str, torch.Tensor], alpha_of: Callable[[str], float | None]
) -> tuple[tuple[Layer, ...], str]:
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    spellings: dict[str, set[str]] = defaultdict(set)
    for key in sorted(tensors):
        name, part, spelling = split_key(key)
        if part in parts[name] or (spelling and spellings[name] - {spelling}):
            raise AdapterError(f"{file}: {name} is in it twice, in different spellings")
        parts[name][part] = tensors[key]
        spellings[name] |= {spelling} - {""}
    whole = all("up" not in given for given in parts.values())
    layers = [_layer(file, name, parts[name], alpha_of(name), whole) for name in sorted(parts)]
    return tuple(layers), " and ".join(sorted(set().union(*spellings.values())))


def _unknown_text(file: Path, unknown: list[str], total: int) -> str:
    for ending, what in REFUSED.items():
        if found := next((key for key in unknown if key.endswith(f".{ending}")), None):
            return (
                f"{file}: {found} belongs to {what}, which the trainer does not write; "
                "it is not read"
            )
    return (
        f"{file}: {len(unknown)} of {total} tensors are no adapter weights this version "
        f"reads, e.g. {', '.join(unknown[:3]) or 'none at all'}; it reads lora_down/lora_up and "
        "lora_A/lora_B pairs, LoKr, DoRA, full-rank and .diff weights"
    )


def _layer(
    file: Path, name: str, parts: dict[str, torch.Tensor], alpha: float | None, whole: bool
) -> Layer:
    where = f"{file}: {name}"
    given = parts.pop("alpha", None)
    kind = KINDS.get(frozenset(parts))
    if kind is None or (kind is FullRankLayer and not whole):
        raise AdapterError(
            f"{where} has {', '.join(sorted(parts)) or 'an alpha only'}, which makes no layer; "
            "the file is damaged or of another kind"
        )
    for part, tensor in parts.items():
        _check_tensor(where, part, tensor)
    if given is not None:
        alpha = _alpha(where, given, needed=set(parts) != {"w1", "w2"})
    layer = kind(name, alpha, **parts)
    _check_layer(where, layer)
    return layer


def _alpha(where: str, given: torch.Tensor, needed: bool) -> float | None:
    # the trainer writes a number too large for fp16 where it means nothing: in a full LoKr
    number = not given.is_complex() and given.numel() == 1
    if not number or (needed and not given.float().isfinite()):
        raise AdapterError(f"{where} has an alpha that is not one finite number")
    return float(given.float()) if needed else None


def _check_tensor(where: str, part: str, tensor: torch.Tensor) -> None:
    dimensions = DIMENSIONS.get(part, (2, 4))
    if tensor.dtype not in DTYPES or tensor.dim() not in dimensions:
        raise AdapterError(
            f"{where} has a {part} weight of {tensor.dtype}, shape {list(tensor.shape)}; "
            f"it must be fp32, fp16 or bf16 with {' or '.join(map(str, dimensions))} dimensions"
        )
    if not tensor.numel():
        raise AdapterError(f"{where} holds no values; copy or download the file again")
    if not torch.isfinite(tensor).all():
        raise AdapterError(
            f"{where} holds NaN or infinite values, so the training diverged or the "
            "file is damaged; use an earlier checkpoint"
        )


def _check_layer(where: str, layer: Layer) -> None:
    one = other = layer.rank
    if isinstance(layer, LoraLayer):
        other = layer.up.shape[1]
    if isinstance(layer, LokrLayer) and layer.w2_a is not None:
        other = layer.w2_a.shape[1]
    if one != other:
        raise AdapterError(f"{where} has rank {one} on one side and {other} on the other")
