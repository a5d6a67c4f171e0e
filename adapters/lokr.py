"""LoKr layers: delta = kron(w1, w2) * scale, where w2 may be a product of two factors.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/lokr.py::LokrModule
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import conv2d, linear

from ..core.errors import AdapterError
from ..core.versions import Profile
from .layer import Layer, LiveLayer, misfit_text, plain_weight
from .lora import add


@dataclass(frozen=True)
class LokrLayer(Layer):
    """w1: (a, c). w2: (b, d, ...) or None; then w2_a (b, rank) @ w2_b (rank, d * kernel)."""

    kind = "lokr"

    w1: torch.Tensor
    w2: torch.Tensor | None = None
    w2_a: torch.Tensor | None = None
    w2_b: torch.Tensor | None = None

    @property
    def rank(self) -> int | None:
        return None if self.w2_b is None else self.w2_b.shape[0]

    def _is_zero(self) -> bool:
        return not all(tensor.any() for tensor in self.tensors())

    def _norm(self) -> float:
        return float(self.w1.double().norm() * self.second().double().norm()) * abs(self.scale)

    def second(self) -> torch.Tensor:
        """The second factor in fp32, (b, d, ...) or (b, d * kernel)."""
        if self.w2 is not None:
            return self.w2.float()
        assert self.w2_a is not None
        assert self.w2_b is not None
        return self.w2_a.float() @ self.w2_b.float()

    def misfit(self, module: torch.nn.Module) -> str:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        rows, columns, *kernel = self._second_shape()
        sides = (self.w1.shape[0] * rows, self.w1.shape[1] * columns, *kernel)
        wanted = tuple(weight.shape)
        fits = sides == wanted or (not kernel and sides == (wanted[0], weight[0].numel()))
        if fits and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            return ""
        return misfit_text(f"kron({list(self.w1.shape)}, {[rows, columns, *kernel]})", module)

    @property
    def columns(self) -> int:
        """Inputs of the second factor."""
        return self._second_shape()[1]

    def _second_shape(self) -> tuple[int, ...]:
        if self.w2 is not None:
            return tuple(self.w2.shape)
        assert self.w2_a is not None
        assert self.w2_b is not None
        return (self.w2_a.shape[0], self.w2_b.shape[1])

    def to(self, device: torch.device) -> LokrLayer:
        """This layer on a device, in fp32."""
        factors = {
            name: tensor.to(device, torch.float32)
            for name in ("w1", "w2", "w2_a", "w2_b")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **factors)

    def delta(self, shape: torch.Size) -> torch.Tensor:
        """The full delta of a weight of this shape, in fp32."""
        w1, w2 = self.w1.float(), self.second()
        if w2.dim() == 4:
            w1 = w1[:, :, None, None]
        return (torch.kron(w1, w2.contiguous()) * self.scale).reshape(shape)

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        yield "weight", self._merge

    def _merge(self, base: torch.Tensor, multiplier: float, out: torch.Tensor) -> None:
        delta = self.to(base.device).delta(base.shape)
        out.copy_(add(base, delta, (multiplier,) if multiplier != 1 else ()))

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        if isinstance(module, torch.nn.Linear) and profile.has("lokr_by_factors"):
            return LiveLokr(self, module, multiplier)
        return LiveWholeLokr(self, module, multiplier)


class LiveLokr(LiveLayer):
    """Factor by factor in the dtype of the module's output, added in it."""

    w1: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: LokrLayer, module: torch.nn.Module, multiplier: float) -> None:
        super().__init__(module, multiplier)
        self.sides = (layer.w1.shape[1], layer.columns)
        self.hold(w1=layer.w1.float(), scale=torch.tensor(layer.scale))
        self.seconds = []
        for name in ("w2", "w2_b", "w2_a"):  # in the order in which they are applied
            if (factor := getattr(layer, name)) is not None:
                self.hold(**{name: factor.float()})
                self.seconds.append(name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.inner(x, *args, **kwargs)
        dtype = output.dtype
        hidden = x.to(dtype).unflatten(-1, self.sides)  # (..., c, d)
        for name in self.seconds:
            hidden = torch.einsum("...qs,os->...qo", hidden, getattr(self, name).to(dtype))
        first = self.w1.to(dtype) * self.scale
        delta = torch.einsum("...qo,pq->...po", hidden, first).flatten(-2, -1)
        return (output + delta * self.multiplier.mean().to(dtype)).to(x.dtype)


class LiveWholeLokr(LiveLayer):
    """Base weight plus the full delta, summed in the base's dtype; the module itself is skipped."""

    layer: LokrLayer

    def __init__(self, layer: LokrLayer, module: torch.nn.Module, multiplier: float) -> None:
        super().__init__(module, multiplier)
        if isinstance(self.inner, LiveLayer) and not self.inner.of_base:
            raise AdapterError(
                f"{layer.name}: a live LoKr of this kind takes the place of its module, so the "
                "adapter below it would be lost; put the LoKr first, or use mode merged"
            )
        self.hold(layer=layer.to(torch.device("cpu")))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module, base = self.module, plain_weight(self.module, x.device)
        delta = self.layer.delta(base.shape).to(base.dtype)
        weight = base + delta * self.multiplier.mean()
        bias: Any = module.bias
        if bias is not None:
            bias = bias.to(weight.device, weight.dtype)
        given = x.to(base.dtype)
        if isinstance(module, torch.nn.Conv2d):
            where: Any = (module.stride, module.padding, module.dilation, module.groups)
            output = conv2d(given, weight, bias, *where)
        else:
            output = linear(given, weight, bias)
        return output.to(x.dtype)
