"""What every kind of adapter layer can do; one file per kind has the trainer's arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch

from ..core.errors import AdapterError
from ..core.versions import Profile

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of an adapter file.

    name: as in the file, without the endings of its tensors. alpha: None if the file has none.
    """

    kind: ClassVar[str]
    can_merge: ClassVar[bool] = True

    name: str
    alpha: float | None

    @property
    def rank(self) -> int | None:
        """Of its factors; None where it has none."""
        return None

    @property
    def scale(self) -> float:
        """alpha / rank, and 1 where either is not there."""
        return self.alpha / self.rank if self.alpha and self.rank else 1.0

    @cached_property
    def is_zero(self) -> bool:
        """Whether it adds nothing, as every layer of an untrained adapter."""
        return self._is_zero()

    @cached_property
    def norm(self) -> float:
        """L2 norm of what it adds to the weight at multiplier 1."""
        return self._norm()

    @abstractmethod
    def _is_zero(self) -> bool: ...

    @abstractmethod
    def _norm(self) -> float: ...

    @abstractmethod
    def misfit(self, module: torch.nn.Module) -> str:
        """Empty if its shapes are those of the module, else both of them."""

    @abstractmethod
    def live(self, module: torch.nn.Module, multiplier: float, profile: Profile) -> LiveLayer:
        """The layer computed beside the module."""

    def merges(self) -> Iterator[tuple[str, Callable[..., None]]]:
        """(parameter of the module, function that writes base + delta into it).

        The function takes (base, multiplier, out); out may be base. Its sums are in fp32, rounded
        once to the dtype of out.
        """
        raise AdapterError(
            f"{self.name}: a {self.kind} layer cannot be merged, and the trainer never does; "
            "use mode as_trainer or live"
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of its tensors."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                yield value


class LiveLayer(ABC):
    """Takes the place of a module's forward; the multiplier can be changed at any time.

    of_base: it belongs to the base, below all adapters.
    """

    of_base = False

    def __init__(self, module: torch.nn.Module, multiplier: float) -> None:
        self.module = module
        self.inner: Forward = module.forward  # the module's own, or the adapter's below
        self.multiplier = torch.tensor((multiplier,))
        self._replaced = module.__dict__.get("forward")
        self._moving = ["multiplier"]

    def install(self) -> None:
        """Puts it around what the module computes now."""
        self.module.forward = self

    def remove(self) -> None:
        """Puts back what the module computed before."""
        if self._replaced is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.forward = self._replaced

    def set_multiplier(self, multiplier: float) -> None:
        """Makes it act with another multiplier from the next forward on."""
        self.multiplier = torch.full_like(self.multiplier, multiplier)

    def hold(self, **tensors: Any) -> None:
        """Keeps tensors as attributes that follow the input from device to device."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
            self._moving.append(name)

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.multiplier.device != x.device:
            for name in self._moving:
                setattr(self, name, getattr(self, name).to(x.device))
        return self.forward(x, *args, **kwargs)

    @abstractmethod
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the module gives with the adapter."""


def is_quantized(tensor: torch.Tensor) -> bool:
    """Whether it is a quantized weight of a library, which has to be asked for its values."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) and type(
        tensor
    ).__module__.partition(".")[0] not in ("torch",)


def plain_weight(module: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """The module's weight on the device, with the values of a quantized one restored."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    weight = weight.to(device)
    return (weight.dequantize() if is_quantized(weight) else weight).detach()


def misfit_text(given: object, module: torch.nn.Module) -> str:
    """Both shapes, for people."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return f"{given} for {type(module).__name__} {list(weight.shape)}"
