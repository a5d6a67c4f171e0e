"""Where a model's parts are while they wait and while they work.

An offloaded part keeps its weights on the CPU and works with copies, so that nothing is ever
copied back. One part works at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..pipelines._loading import LoadedModel
from ..pipelines._watch import Watch

# Share of the free device memory that weights may take; activations need the rest.
RESIDENT_SHARE = 0.7
LISTS = (torch.nn.ModuleList, torch.nn.Sequential)  # what blocks stand in


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
        for p in (*module.parameters(), *module.buffers())
        if p.device.type == "cuda"
    )
    return "none" if model.weight_bytes <= (free + placed) * RESIDENT_SHARE else "model"


@contextmanager
def placed(
    model: LoadedModel, offload: str, on_status: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Parts on the device for one render: all of them, or each while it works.

    offload: `none`; `model`, a part as a whole; `group`, its blocks one by one; `sequential`, each
    layer. With `none` all stay there afterwards. on_status: told while they move; it stops that by
    raising.
    """
    home = model.device if offload == "none" else torch.device("cpu")
    with Watch(on_status, f"Moving {model.spec.title} to {home.type}"):
        for module in model.modules.values():
            module.to(home)
    if offload == "none":
        yield
        return
    turns = _Turns(model.modules.values(), model.device, offload)
    try:
        yield
    finally:
        turns.end()


class _Turns:
    """The part that works is on the device, and no other is."""

    def __init__(self, modules: Iterable[Any], device: torch.device, offload: str) -> None:
        self._working: _Part | None = None
        self._parts = [_Part(module, device, offload, self.take) for module in modules]

    def take(self, part: _Part) -> None:
        """Lets a part work, if it does not already."""
        if part is not self._working:
            self._rest()
            part.weights.bring()
            self._working = part

    def end(self) -> None:
        """Leaves the modules as they were before, also after an error in one."""
        for part in self._parts:
            part.end()
        self._rest()

    def _rest(self) -> None:
        if self._working is not None:
            self._working.weights.leave()
            self._working = None
            torch.cuda.empty_cache()


class _Part:
    """A component. weights: what is on the device for all of its turn.

    take: called with it whenever it starts to work. diffusers asks a component's `_hf_hook` where
    it computes, and calls the hook where something else than `forward` starts it, as in a VAE.
    """

    def __init__(self, module: Any, device: torch.device, offload: str, take: Any) -> None:
        self.execution_device = device
        self._module, self._take = module, take
        self._inner = [
            (inner, _Weights(modules, device)) for inner, modules in _units(module, offload)
        ]
        covered = {id(m) for _, weights in self._inner for m in weights.modules}
        self.weights = _Weights([m for m in module.modules() if id(m) not in covered], device)
        self._handles = [module.register_forward_pre_hook(self._start)]
        for inner, weights in self._inner:
            self._handles.append(inner.register_forward_pre_hook(weights.bring))
            self._handles.append(inner.register_forward_hook(weights.leave))
        module._hf_hook = self

    def pre_forward(self, _module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Called by diffusers."""
        self._take(self)
        return args, kwargs

    def _start(self, _module: Any, _args: Any) -> None:
        self._take(self)

    def end(self) -> None:
        """Takes off all hooks and copies but those of `weights`."""
        for handle in self._handles:
            handle.remove()
        for _, weights in self._inner:
            weights.leave()
        del self._module._hf_hook


class _Weights:
    """The own parameters and buffers of some modules: as they are, or copies on the device."""

    def __init__(self, modules: list[Any], device: torch.device) -> None:
        self.modules, self._device = modules, device
        tables = [table for m in modules for table in (m._parameters, m._buffers)]
        self._slots = [
            (table, name, tensor)
            for table in tables
            for name, tensor in table.items()
            if tensor is not None
        ]

    def bring(self, *_: Any) -> None:
        """Puts copies into the modules; of a tensor that several share, one."""
        copies: dict[int, Any] = {}
        for table, name, tensor in self._slots:
            if id(tensor) not in copies:
                copies[id(tensor)] = _copy(tensor, self._device)
            table[name] = copies[id(tensor)]

    def leave(self, *_: Any) -> None:
        """Puts the modules' own tensors back."""
        for table, name, tensor in self._slots:
            table[name] = tensor


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # another tensor in any case, also where it stays on its device
    copy = tensor.detach().to(device)
    parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(copy, requires_grad=False) if parameter else copy


def _units(part: Any, offload: str) -> Iterator[tuple[Any, list[Any]]]:
    # modules that bring weights of their own, each with the modules it brings them for
    if offload == "group":
        for block in _blocks(part):
            yield block, list(block.modules())
    elif offload == "sequential":
        for module in part.modules():
            if module._parameters or module._buffers:
                yield module, [module]


def _blocks(module: Any) -> Iterator[Any]:
    for child in module.children():
        called = type(child).forward is not torch.nn.Module.forward
        if called and isinstance(module, LISTS):
            yield child
        else:
            yield from _blocks(child)
