"""All model ids, found in the family files of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ..core.errors import UnknownModelError
from ..core.specs import ModelSpec


def list_models() -> tuple[ModelSpec, ...]:
    """Every model, sorted by id."""
    return tuple(sorted(_specs().values(), key=lambda spec: spec.id))


def get_model(model_id: str) -> ModelSpec:
    """The spec of a model id. Raises UnknownModelError, naming all ids."""
    specs = _specs()
    if model_id not in specs:
        raise UnknownModelError(f"unknown model {model_id!r}; allowed: {', '.join(sorted(specs))}")
    return specs[model_id]


@cache
def _specs() -> dict[str, ModelSpec]:
    package = importlib.import_module(__package__ or "")
    specs: dict[str, ModelSpec] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        family = importlib.import_module(f".{module.name}", __package__)
        for spec in family.MODELS:
            if spec.id in specs:
                raise ValueError(f"model id {spec.id!r} is defined twice")
            specs[spec.id] = spec
    return specs
