"""Offloading: every tensor that computes is on the device, one part at a time, and bytes stay.

The device is played: weights at home refuse to compute, and copies of them are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ai_toolkit_inference import Engine, SampleResult, get_model, list_models
from ai_toolkit_inference.engine import engine as engines
from ai_toolkit_inference.engine import placement
from ai_toolkit_inference.engine.weights import tiny_lora

COPY = placement._copy
PLACEMENT = placement.__name__
MODES = ("model", "group", "sequential")
# what may be done with a weight on another device: ask about it, or bring what it holds
HARMLESS = {
    "__get__",
    "to",
    "view",
    "size",
    "dim",
    "numel",
    "stride",
    "is_floating_point",
    "detach",
}


class Device(TorchFunctionMode):
    """What is on it, and `turns`, the components in the order they worked in."""

    def __init__(self, modules: dict[str, Any]) -> None:
        super().__init__()
        self.home = {
            id(tensor): (name, tensor)
            for name, module in modules.items()
            for tensor in (*module.parameters(), *module.buffers())
        }
        self.turns: list[str] = []
        self.here = self.most = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in HARMLESS:
            given = [self.home[id(x)][0] for x in tree_leaves((args, kwargs)) if id(x) in self.home]
            assert not given, f"{func.__name__} of weights of {given} that are not on the device"
        return func(*args, **(kwargs or {}))

    def copy(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        name, _ = self.home[id(tensor)]
        if self.turns[-1:] != [name]:
            self.turns.append(name)
        self.here += tensor.nbytes
        self.most = max(self.most, self.here)
        return COPY(tensor, device)

    def left(self, weights: Any) -> None:
        tensors = {id(table[name]): table[name] for table, name, _ in weights._slots}
        self.here -= sum(tensor.nbytes for key, tensor in tensors.items() if key not in self.home)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each component."""
        sizes: dict[str, int] = {}
        for name, tensor in self.home.values():
            sizes[name] = sizes.get(name, 0) + tensor.nbytes
        return sizes

    @contextmanager
    def playing(self, patch: pytest.MonkeyPatch, model: Any, mode: str) -> Iterator[None]:
        leave = placement._Weights.leave

        def watched(weights: Any, *given: Any) -> None:
            self.left(weights)
            leave(weights, *given)

        with patch.context() as patched:
            patched.setattr(placement, "_copy", self.copy)
            patched.setattr(placement._Weights, "leave", watched)
            with placement.placed(model, mode), self:
                yield
        assert self.here == 0
        modules = [module for part in model.modules.values() for module in part.modules()]
        hooks = [
            h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        ]
        assert not any("_hf_hook" in vars(module) for module in modules)
        assert not any(type(getattr(h, "__self__", 0)).__module__ == PLACEMENT for h in hooks)


@pytest.fixture(scope="module")
def offloaded() -> Callable[..., SampleResult]:
    """What a request gives, drawn with a mode; `devices` gets the device that was played."""
    engine = Engine("cpu")

    def render(request: Any, mode: str, devices: list[Device], **during: Any) -> SampleResult:
        with pytest.MonkeyPatch.context() as patch:

            def placed(model: Any, _offload: str, _on_status: Any) -> Any:
                devices.append(Device(model.modules))
                return devices[-1].playing(patch, model, mode)

            patch.setattr(engines, "placed", placed)
            return engine.sample(request, **during)

    return render


def are_equal(ours: SampleResult, theirs: SampleResult) -> bool:
    """Whether frames and sound are the same."""
    assert (ours.audio is None) == (theirs.audio is None)
    heard = theirs.audio is None or np.array_equal(ours.audio, theirs.audio)
    return heard and np.array_equal(ours.frames, theirs.frames)


def small(ask: Any, spec: Any, **fields: Any) -> Any:
    """A request of two steps, with all pictures that the model needs."""
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    pictures = (picture,) * spec.control_images.required
    clip = {"num_frames": 5, "fps": 8} if spec.task == "video" else {}
    return ask(spec.id, dtype="bf16", **({"control_images": pictures} | clip | fields))


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_modes_give_the_same_bytes(offloaded: Any, ask: Any, engine: Engine, spec: Any) -> None:
    request = small(ask, spec, adapters=((tiny_lora(spec), 1.0),), mode="live")
    plain = engine.sample(request)
    devices: list[Device] = []
    for mode in MODES:
        assert are_equal(offloaded(request, mode, devices), plain), mode
    model, group, sequential = devices
    assert set(model.turns) == set(spec.components)
    whole = sum(tensor.nbytes for _, tensor in model.home.values())
    assert sequential.most < group.most < model.most < whole
    assert model.most == max(model.sizes.values())


@pytest.mark.parametrize("quantize", ["qfloat8", "float8", "uint3", "convrot8"])
def test_modes_move_quantized_weights(
    offloaded: Any, ask: Any, engine: Engine, quantize: str
) -> None:
    spec = get_model("zimage")
    adapters = ((tiny_lora(spec), 1.0),)
    request = small(ask, spec, adapters=adapters, quantize=quantize)
    plain = engine.sample(request)
    for mode in MODES:
        devices: list[Device] = []
        assert are_equal(offloaded(request, mode, devices), plain), mode
        assert devices[0].most < sum(devices[0].sizes.values())


EXPERTS = ["transformer", "transformer_2"]
TURNS = {
    "wan22_14b_t2v": ["text_encoder", *EXPERTS, "vae"],
    "wan22_14b_i2v": ["text_encoder", "vae", *EXPERTS, "vae"],
    "wan22_5b": ["text_encoder", "transformer", "vae"],
    "ltx2": ["text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder"],
}


@pytest.mark.parametrize(("model", "turns"), TURNS.items())
def test_experts_take_turns_once(offloaded: Any, ask: Any, model: str, turns: list[str]) -> None:
    devices: list[Device] = []
    offloaded(small(ask, get_model(model), steps=4), "model", devices)
    assert devices[0].turns == turns


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_leaves_the_weights_at_home(offloaded: Any, ask: Any, mode: str) -> None:
    def stop(_step: Any) -> None:
        raise KeyboardInterrupt

    spec, devices = get_model("wan22_14b_t2v"), []
    plain = offloaded(small(ask, spec), mode, devices)
    with pytest.raises(KeyboardInterrupt):
        offloaded(small(ask, spec), mode, devices, on_step=stop)
    assert devices[1].here == 0
    assert are_equal(offloaded(small(ask, spec), mode, devices), plain)
