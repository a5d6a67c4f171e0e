"""The engine's model among ComfyUI's own: counted, evicted when others need room, and let go."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..core.errors import AitkError
from ..core.requests import Recipe

_outputs: list[weakref.ref[Recipe]] = []  # of nodes, which name models
_entries: dict[int, Any] = {}  # number of the engine's load -> what ComfyUI knows of it


def keep_while_used(engine: Any, recipe: Recipe) -> Recipe:
    """A node's output. The engine's model goes when no output that names it is left."""
    _outputs.append(weakref.ref(recipe))
    weakref.finalize(recipe, _let_go, weakref.ref(engine)).atexit = False
    return recipe


def offload_as_started(offload: str) -> str:
    """The offload mode for `auto` where ComfyUI was started with --lowvram or --novram."""
    from comfy.model_management import VRAMState, vram_state

    modes = {VRAMState.LOW_VRAM: "model", VRAMState.NO_VRAM: "sequential"}
    return modes.get(vram_state, offload) if offload == "auto" else offload


@contextmanager
def room_for(engine: Any, recipe: Recipe) -> Iterator[None]:
    """Room on the device for one sample; what it leaves there is ComfyUI's to evict afterwards."""
    import comfy.model_management as management

    if engine.device.type != "cpu":
        own = [model for model in management.current_loaded_models if model.model in _known()]
        wanted = _bytes_of(engine, recipe) + management.minimum_inference_memory()
        management.free_memory(wanted, engine.device, keep_loaded=own)
        management.soft_empty_cache()
    try:
        yield
    finally:
        _register(engine)


def _bytes_of(engine: Any, recipe: Recipe) -> int:
    # what a sample still needs on the device: everything that is not there yet
    if engine.holds(recipe):
        return engine.weight_bytes() - engine.weight_bytes(engine.device)
    try:
        return engine.file_bytes(recipe)
    except AitkError:  # sampling says it, beside its other checks
        return 0


def _register(engine: Any) -> None:
    import comfy.model_management as management

    if engine.loaded is None:
        _entries.clear()
        return
    if engine.loads not in _entries:
        _entries.clear()
        _entries[engine.loads] = _patcher_class()(engine)
    management.load_models_gpu([_entries[engine.loads]])


def _known() -> list[Any]:
    return list(_entries.values())


def _let_go(engine_ref: weakref.ref[Any]) -> None:
    _outputs[:] = [output for output in _outputs if output() is not None]
    engine = engine_ref()
    if engine is None or engine.loaded is None:
        return
    left = [recipe for output in _outputs if (recipe := output()) is not None]
    if engine.loaded not in [(recipe.model, recipe.weights, recipe.dtype) for recipe in left]:
        engine.unload()
        _entries.clear()


@cache
def _patcher_class() -> Any:
    import torch
    from comfy.model_patcher import ModelPatcher

    class AIToolkitModel(torch.nn.Module):
        """What ComfyUI names in its log; the weights are the engine's."""

    class EnginePatcher(ModelPatcher):
        """Places nothing, as the engine does; counts what is on the device, and evicts it."""

        def __init__(self, engine: Any) -> None:
            self._engine = engine  # before: ComfyUI 0.3.64 asks for the size in its __init__
            super().__init__(AIToolkitModel(), engine.device, torch.device("cpu"), size=1)

        def model_size(self) -> int:
            return self._engine.weight_bytes(self._engine.device)

        def loaded_size(self) -> int:
            return self.model_size()

        def current_loaded_device(self) -> Any:
            return self.load_device

        def is_dynamic(self) -> bool:
            return False

        def model_dtype(self) -> Any:
            return torch.float32

        def model_patches_to(self, device: Any) -> None:
            pass

        def model_patches_models(self) -> list[Any]:
            return []

        def partially_load(self, device_to: Any, extra_memory: int = 0, **_: Any) -> int:
            return 0

        def partially_unload(self, device_to: Any, memory_to_free: int = 0, **_: Any) -> int:
            return 0  # all or nothing: ComfyUI then calls detach

        def partially_unload_ram(self, ram_to_unload: int, **_: Any) -> None:
            pass

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all:  # else it is about to be registered again
                self._engine.evict()
            return self.model

    return EnginePatcher
