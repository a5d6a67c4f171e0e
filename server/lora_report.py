"""What is told of a LoRA: how it falls on a model, what it changes, where it came from."""

from __future__ import annotations

from typing import Any

from ..adapters.bind import Binding
from ..adapters.report import summary
from ..core.requests import Recipe
from ..engine import Engine
from ..engine.downloads import is_remote
from ..pipelines._registry import get_model
from .schemas import Lora
from .service import PATIENCE
from .settings import Settings
from .translate import adapter_refs, find_checkpoint

NOT_JUDGED = dict.fromkeys(("bound", "modules", "unbound", "mismatched"))


def lora_report(
    engine: Engine, settings: Settings, model: str, lora: Lora, weights: str = ""
) -> dict[str, Any]:
    """adapters.report.summary of a LoRA by file, with `fits`: whether a request with it is taken.

    fits is None where only the names were looked at, because the model is not on this machine yet,
    or another one is being drawn with. weights: as a request names them. Raises AitkError for what
    cannot be found or read.
    """
    spec = get_model(model)
    checkpoint = find_checkpoint(weights or settings.weights, settings)
    (ref,) = adapter_refs([lora], spec, settings)
    ((adapter, binding),) = engine.judge(Recipe(spec.id, checkpoint), ref, patience=PATIENCE)
    named = {"file": shown_name(lora.path), "transformer": lora.transformer}
    return {**NOT_JUDGED, **summary(adapter, binding), **named, "fits": _fits(binding, lora)}


def shown_name(path: str) -> str:
    """A LoRA's name as everybody may read it: of a link all but the query, which may open it."""
    return path.partition("?")[0] if is_remote(path) else path


def _fits(binding: Binding | None, lora: Lora) -> bool | None:
    if binding is None:
        return None
    return bool(binding.bound) and (binding.complete or lora.allow_partial)
