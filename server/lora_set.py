"""The LoRAs that an administrator has put on the server: nicknames, and what acts by default."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

from ..core.errors import AdapterError
from ..core.requests import MODES, Recipe
from ..engine import Engine
from ..pipelines._registry import get_model
from .schemas import InferenceRequest, Lora, Strict
from .settings import Settings
from .store import Store
from .translate import adapter_refs, find_checkpoint


class ModelLoras(Strict):
    """The LoRAs of one model; changed by a copy.

    known: by nickname. active: nickname -> strength, in the order in which they act.
    """

    known: dict[str, Lora] = {}  # noqa: RUF012  pydantic copies it
    active: dict[str, float] = {}  # noqa: RUF012
    mode: Literal[MODES] = "as_trainer"  # type: ignore[valid-type]

    def acting(self) -> list[Lora]:
        """Those that act where a request names none, by file."""
        return [
            self.known[name].model_copy(update={"network_multiplier": strength})
            for name, strength in self.active.items()
        ]

    def by_file(self, lora: Lora) -> Lora:
        """A request's LoRA with its file for its nickname; any other name is a file's already.

        The side and allow_partial are as registered unless the request gives them; the strength is
        the request's.
        """
        known = self.known.get(lora.path)
        if known is None:
            return lora
        update = {
            "path": known.path,
            "transformer": lora.transformer or known.transformer,
            "allow_partial": lora.allow_partial or known.allow_partial,
        }
        return lora.model_copy(update=update)


class LoraSet:
    """Nicknames of LoRAs, and for each model those that act where a request names none.

    Kept in the store, so that a restarted server draws the same. Safe to call from several threads.
    """

    def __init__(self, engine: Engine, settings: Settings, store: Store) -> None:
        self._engine, self._settings, self._store = engine, settings, store
        self._lock = threading.Lock()
        self._models = {
            model: ModelLoras.model_validate_json(text) for model, text in store.loras().items()
        }

    def of(self, model: str) -> ModelLoras:
        """The LoRAs of a model."""
        return self._models.get(model, NONE)

    def models(self) -> dict[str, ModelLoras]:
        """The LoRAs of every model that has some."""
        return dict(self._models)

    def fill(self, request: InferenceRequest) -> InferenceRequest:
        """The request with its LoRAs decided: its own, by file, or else the server's.

        The server's come with their mode, unless the request names one.
        """
        loras = self.of(request.model)
        if request.loras is not None:
            own = [loras.by_file(lora) for lora in request.loras]
            return request.model_copy(update={"loras": own})
        update: dict[str, Any] = {"loras": loras.acting()}
        if loras.active and "mode" not in request.model_fields_set:
            update["mode"] = loras.mode
        return request.model_copy(update=update)

    def change(self, model: str, change: Callable[[ModelLoras], ModelLoras]) -> ModelLoras:
        """What change makes of the LoRAs of a model, once all that acts then is seen to fit.

        Files behind links are fetched for that. Whatever is raised leaves everything as it was.
        """
        while True:
            before = self.of(model)
            after = change(before)
            self._check(model, after)
            with self._lock:
                if self.of(model) is before:  # else another change came between
                    self._store.keep_loras(model, after.model_dump_json())
                    self._models = {**self._models, model: after}
                    return after

    def _check(self, model: str, loras: ModelLoras) -> None:
        spec, weights = get_model(model), find_checkpoint(self._settings.weights, self._settings)
        refs = adapter_refs(loras.acting(), spec, self._settings)
        recipe = Recipe(spec.id, weights, adapters=refs, mode=loras.mode)
        for ref in refs:
            for adapter, _ in self._engine.fit(recipe, ref):
                if loras.mode == "merged" and adapter.live_only:
                    raise AdapterError(
                        f"{adapter.path} is a DoRA, which cannot be merged; use merge_mode auto or "
                        "dynamic"
                    )


NONE = ModelLoras()
