"""DoRA layers: a LoRA and a magnitude of every output. They act beside the module only.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/DoRA.py::DoRAModule
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from ..core.versions import Profile
from .layer import Layer, LiveLayer, misfit_text, plain_weight
from .lora import LiveLora, LoraLayer


@dataclass(frozen=True)
class DoraLayer(LoraLayer):
    """magnitude: (out,), the length of each row of the weight with its LoRA."""

    kind = "dora"
    can_merge = False

    magnitude: torch.Tensor

    def _is_zero(self) -> bool:
        return False  # the magnitude acts even without the LoRA

    def misfit(self, module: torch.nn.Module) -> str:
        if not isinstance(module, torch.nn.Linear):
            return misfit_text("DoRA, which is for Linear modules,", module)
        if self.magnitude.shape != (module.out_features,):
            return misfit_text(f"magnitude {list(self.magnitude.shape)}", module)
        return super().misfit(module)

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        return Layer.merges(self)

    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        return LiveDora(self, module, multiplier)


class LiveDora(LiveLora):
    """The LoRA in fp32, then what the magnitude changes, each rounded before it is added."""

    magnitude: torch.Tensor

    def __init__(self, layer: DoraLayer, module: torch.nn.Module, multiplier: float) -> None:
        super().__init__(layer, module, multiplier)
        self.hold(magnitude=layer.magnitude.float())

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.inner(x, *args, **kwargs)
        return output + (self.delta(x).to(output.dtype) + self._turn(x).to(output.dtype))

    def _turn(self, x: torch.Tensor) -> torch.Tensor:
        delta = (self.up @ self.down) * self.multiplier.mean()
        if self.scale != 1:  # only files of other programs have one
            delta = delta * self.scale
        weight = plain_weight(self.module, x.device).to(delta.dtype) + delta
        length = torch.linalg.norm(weight, dim=1)
        return (self.magnitude / length - 1).view(1, -1) * linear(x.to(weight.dtype), weight)
