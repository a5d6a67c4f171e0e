"""What FLUX.2 and Chroma share: layers in one piece as released, and their released files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import Linear, Module, Parameter

from ..core.errors import CheckpointError
from ..core.released_names import released


def fused(*layers: Linear) -> Linear:
    """One linear layer whose rows are those of the given ones, in order.

    In bf16 the layers one by one round otherwise, at the released widths.
    """
    first = layers[0]
    rows = sum(layer.out_features for layer in layers)
    layer = Linear(first.in_features, rows, bias=first.bias is not None, device="meta")
    layer.weight = Parameter(torch.cat([part.weight for part in layers]), requires_grad=False)
    if first.bias is not None:
        layer.bias = Parameter(torch.cat([part.bias for part in layers]), requires_grad=False)
    return layer


def fuse_joint_attention(attention: Any) -> None:
    """A double block's attention with one projection for the picture and one for the text."""
    names = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
    for name, parts in zip(("to_qkv", "to_added_qkv"), names, strict=True):
        setattr(attention, name, fused(*(getattr(attention, part) for part in parts)))
        for part in parts:
            delattr(attention, part)
    attention.fused_projections = True


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Tensor name -> shape, of a safetensors file. Raises CheckpointError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} could not be read: {error}") from error


def count(shapes: dict[str, list[int]], start: str) -> int:
    """How many numbered parts, as in `double_blocks.7.`, have names that start so."""
    numbers = {name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)}
    return len(numbers)


def read_released(
    module: Module, file: Path, rules: tuple[tuple[str, str], ...], dtype: torch.dtype
) -> Module:
    """The empty module with its weights from a file in the names of the first release.

    Floating-point tensors become `dtype`, and stay in the mapped file where they are. Raises
    CheckpointError unless file and module have the same tensors.
    """
    from safetensors import safe_open

    stored = shapes_in(file)
    wanted = {released(path, rules): path for path in module.state_dict()}
    if wanted.keys() != stored.keys():
        missing, strange = sorted(wanted.keys() - stored), sorted(stored.keys() - wanted.keys())
        raise CheckpointError(
            f"{file} is not the released network: {len(missing)} tensors are missing, "
            f"{len(strange)} are unknown ({', '.join([*missing, *strange][:3])})"
        )
    with safe_open(file, framework="pt") as opened:
        for name, path in wanted.items():
            _put(module, path, opened.get_tensor(name), dtype)
    return module


def _put(module: Module, path: str, value: torch.Tensor, dtype: torch.dtype) -> None:
    owner, _, leaf = path.rpartition(".")
    part = module.get_submodule(owner)
    shape = getattr(part, leaf).shape
    value = value.to(dtype) if value.is_floating_point() else value
    value = value.reshape(shape)  # a convolution of 1x1 as a linear layer
    if leaf in dict(part.named_parameters(recurse=False)):
        setattr(part, leaf, Parameter(value, requires_grad=False))
    else:
        part.register_buffer(leaf, value)
