"""A model in memory, and what is known of the adapters that were put on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..adapters.apply import AdapterState
from ..adapters.bind import BoundLayer, bind
from ..adapters.read import Adapter
from ..core.specs import ModelSpec
from ..pipelines._loading import LoadedModel
from .plan import PlannedAdapter
from .weights import Stamp


@dataclass
class Base:
    """A model as it was loaded."""

    # model id, where its weights are, dtype, their state there, LoRAs it was made with, how it is
    # quantized
    key: tuple[str, str, str, Stamp, tuple[tuple[str, str], ...], tuple[Any, ...]]
    weights: str  # as the recipe names them
    loras: tuple[str, ...]  # as the recipe names them
    model: LoadedModel
    adapters: AdapterState
    merges: bool  # whether the trainer would merge adapters into it
    packed: dict[str, int]  # component -> number of quantized layers
    bindings: dict[tuple[str, str, bool], tuple[BoundLayer, ...]] = field(default_factory=dict)


def is_live(mode: str, adapter: Adapter, base: Base) -> bool:
    """Whether an adapter acts beside the layers of a model, instead of in their weights."""
    # Upstream: ostris/ai-toolkit@27a03a91 jobs/process/BaseSDTrainProcess.py (can_merge_in)
    return mode == "live" or adapter.live_only or (mode == "as_trainer" and not base.merges)


def bind_once(base: Base, spec: ModelSpec, planned: PlannedAdapter) -> tuple[BoundLayer, ...]:
    """The adapter's layers with the model's modules, found once."""
    adapter, side, partial = planned.adapter, planned.side, planned.allow_partial
    key = (adapter.digest, side, partial)
    if key not in base.bindings:
        base.bindings[key] = bind(adapter, spec, base.model.modules, side, partial)
    return base.bindings[key]
