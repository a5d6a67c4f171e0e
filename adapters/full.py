"""Layers that hold a whole delta: full-rank LoRA, and full weights of any module.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/lora_special.py::LoRAModule, FullModule
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import conv2d, linear

from ..core.versions import Profile
from .layer import Layer, LiveLayer, is_quantized, misfit_text
from .lora import add


@dataclass(frozen=True)
class FullRankLayer(Layer):
    """down: shaped as the weight. The file does not tell the scale; the trainer's is 1."""

    kind = "fullrank"

    down: torch.Tensor

    def _is_zero(self) -> bool:
        return not self.down.any()

    def _norm(self) -> float:
        return float(self.down.double().norm())

    def misfit(self, module: torch.nn.Module) -> str:
        kinds = torch.nn.Linear | torch.nn.Conv2d
        if isinstance(module, kinds) and self.down.shape == module.weight.shape:
            return ""
        return misfit_text(list(self.down.shape), module)

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        yield "weight", partial(merge_whole, self.down)

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        return LiveFullRank(self, module, multiplier)


class LiveFullRank(LiveLayer):
    """Computed in fp32 beside the module, rounded once, added in the module's dtype."""

    down: torch.Tensor

    def __init__(self, layer: FullRankLayer, module: torch.nn.Module, multiplier: float) -> None:
        super().__init__(module, multiplier)
        self.hold(down=layer.down.float())

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.inner(x, *args, **kwargs)
        x, module = x.float(), self.module
        if isinstance(module, torch.nn.Conv2d):
            where: Any = (module.stride, module.padding)
            delta = conv2d(x, self.down, None, *where)
        else:
            delta = linear(x, self.down)
        return output + (delta * self.multiplier).to(output.dtype)


@dataclass(frozen=True)
class DiffLayer(Layer):
    """diff: added to the weight of a module of any kind; diff_b: to its bias."""

    kind = "diff"

    diff: torch.Tensor
    diff_b: torch.Tensor | None = None

    def _is_zero(self) -> bool:
        return not any(tensor.any() for tensor in self.tensors())

    def _norm(self) -> float:
        return float(sum(tensor.double().norm() ** 2 for tensor in self.tensors()) ** 0.5)

    def misfit(self, module: torch.nn.Module) -> str:
        if self.diff.shape != module.weight.shape:  # type: ignore[union-attr]
            return misfit_text(list(self.diff.shape), module)
        if self.diff_b is None:
            return ""
        bias = getattr(module, "bias", None)
        if bias is None or bias.shape != self.diff_b.shape:
            given = f"a bias of {list(self.diff_b.shape)}"
            return f"{given} for {'none' if bias is None else list(bias.shape)}"
        return ""

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        yield "weight", partial(merge_whole, self.diff)
        if self.diff_b is not None:
            yield "bias", partial(merge_whole, self.diff_b)

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        return LiveDiff(self, module, multiplier)


class LiveDiff(LiveLayer):
    """The module's own forward over weights that carry the delta, summed in their dtype."""

    diff: torch.Tensor
    diff_b: torch.Tensor | None

    def __init__(self, layer: DiffLayer, module: torch.nn.Module, multiplier: float) -> None:
        super().__init__(module, multiplier)
        self.hold(diff=layer.diff.float())
        self.diff_b = None
        if layer.diff_b is not None:
            self.hold(diff_b=layer.diff_b.float())

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parameters = self.module._parameters
        own = dict(parameters)
        try:
            for name, diff in (("weight", self.diff), ("bias", self.diff_b)):
                if diff is not None:  # a quantized weight is no parameter
                    base = own.get(name, getattr(self.module, name))
                    parameters[name] = self._sum(base, diff)  # type: ignore[assignment]
            return self.inner(x, *args, **kwargs)
        finally:
            parameters.clear()
            parameters.update(own)

    def _sum(self, base: Any, diff: torch.Tensor) -> torch.Tensor:
        base = base.dequantize() if is_quantized(base) else base
        delta = diff.to(base.device) * self.multiplier.mean().to(base.device)
        return base + delta.to(base.dtype)


def merge_whole(
    delta: torch.Tensor, base: torch.Tensor, multiplier: float, out: torch.Tensor
) -> None:
    """Writes base + multiplier * delta into `out`."""
    whole = delta.to(base.device, torch.float32, copy=True)
    out.copy_(add(base, whole, (multiplier,) if multiplier != 1 else ()))
