"""What every way to hold a weight in fewer bits can do; one file per family has its arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Packed:
    """A weight as it is held. dtype, shape: of the weight it stands for."""

    tensors: Tensors
    shape: torch.Size
    dtype: torch.dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Scheme(ABC):
    """One qtype's arithmetic; holds no tensors itself.

    kinds: of modules, that it is for. replaces: the trainer puts other modules in their place.
    own: it is the trainer's own, which it leaves to itself where it offloads layers.
    """

    kinds: tuple[type[torch.nn.Module], ...] = (torch.nn.Linear,)
    replaces = False
    own = False

    def fits(self, shape: torch.Size) -> bool:
        """Whether a weight of this shape can be held; the trainer leaves others as they are."""
        return True

    @abstractmethod
    def pack(self, weight: torch.Tensor) -> Tensors:
        """The weight as it will be held."""

    @abstractmethod
    def restore(self, held: Packed) -> torch.Tensor:
        """The weight again, in its own dtype, with what rounding left of it."""

    def multiply(self, x: torch.Tensor, held: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """x (..., in) times the weight, plus bias: (..., out)."""
        return linear(x, self.restore(held).to(x.dtype), bias)
