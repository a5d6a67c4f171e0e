"""Where a model's parts are while they wait and while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..pipelines._loading import LoadedModel

# Share of the free device memory that weights may take; activations need the rest.
RESIDENT_SHARE = 0.7


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_offload(offload: str, model: LoadedModel) -> str:
    """The offload mode for `auto`: `none` when all weights fit on the device, else `model`.

    Without a CUDA device every mode is `none`.
    """
    if model.device.type != "cuda":
        return "none"
    if offload != "auto":
        return offload
    free, _ = torch.cuda.mem_get_info(model.device)
    placed = sum(
        p.numel() * p.element_size()
        for module in model.modules.values()
        for p in module.parameters()
        if p.device.type == "cuda"
    )
    return "none" if model.weight_bytes <= (free + placed) * RESIDENT_SHARE else "model"


@contextmanager
def placed(pipeline: Any, model: LoadedModel, offload: str) -> Iterator[None]:
    """Parts on the device for one render: all of them, or each while it works.

    With `none` they stay there afterwards, else they go back to the CPU.
    """
    if offload == "none":
        for module in model.modules.values():
            module.to(model.device)
        yield
        return
    for module in model.modules.values():
        module.to("cpu")
    try:
        _OFFLOADS[offload](pipeline, model.device)
        yield
    finally:
        pipeline.remove_all_hooks()
        for module in model.modules.values():
            module.to("cpu")
        torch.cuda.empty_cache()


def _offload_model(pipeline: Any, device: torch.device) -> None:
    pipeline.enable_model_cpu_offload(device=device)


def _offload_sequential(pipeline: Any, device: torch.device) -> None:
    pipeline.enable_sequential_cpu_offload(device=device)


def _offload_group(pipeline: Any, device: torch.device) -> None:
    pipeline.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )


_OFFLOADS = {"model": _offload_model, "sequential": _offload_sequential, "group": _offload_group}
