"""Layers whose weight is packed, in the place of the ones that they are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils._pytree import tree_map_only

from .scheme import Packed, Scheme, Tensors

NAMED = "packed_"  # how the buffers of packed layers start


class PackedWeight(torch.Tensor):
    """Stands for a packed weight wherever code asks a layer for it; restored by any operation."""

    layer: Any

    @staticmethod
    def __new__(cls, layer: PackedLayer) -> PackedWeight:
        weight = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, layer.packed.shape, dtype=layer.packed.dtype, device=layer.packed_device
        )
        weight.layer = layer
        return weight

    def dequantize(self) -> torch.Tensor:
        """The weight in its own dtype, with what rounding left of it."""
        return self.layer.scheme.restore(self.layer.packed)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedWeight({type(self.layer.scheme).__name__}, {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(cls, cls.dequantize, (args, kwargs or {}))
        return func(*args, **kwargs)


class PackedLayer(torch.nn.Module):
    """What packed layers have in common. restores: they multiply with the restored weight."""

    scheme: Scheme
    restores: bool
    weight_shape: torch.Size
    weight_dtype: torch.dtype
    tensor_dtypes: dict[str, torch.dtype]

    @property
    def packed(self) -> Packed:
        """The weight as it is held."""
        buffers = self._buffers
        tensors = {
            name: buffers[NAMED + name].view(dtype)  # type: ignore[union-attr]
            for name, dtype in self.tensor_dtypes.items()
        }
        return Packed(tensors, self.weight_shape, self.weight_dtype)

    @property
    def packed_device(self) -> torch.device:
        """Where it is held."""
        name = NAMED + next(iter(self.tensor_dtypes))
        return self._buffers[name].device  # type: ignore[union-attr]

    @property
    def held(self) -> Packed | torch.Tensor:
        """The packed weight, or what an adapter has put in its place for now.

        Layers that replaced others pack that again, as optimum-quanto does.
        """
        plain = self._parameters.get("weight")
        if plain is None or not self.scheme.replaces:
            return self.packed if plain is None else plain
        return Packed(self.scheme.pack(plain), self.weight_shape, self.weight_dtype)

    @property
    def weight(self) -> PackedWeight:
        """Shape, dtype and device of the weight, and its values on demand."""
        return PackedWeight(self)


class PackedLinear(PackedLayer, torch.nn.Linear):  # type: ignore[misc]
    """A linear layer with a packed weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        held = self.held
        if isinstance(held, torch.Tensor):
            return linear(input, held, self.bias)
        if self.restores:
            return Scheme.multiply(self.scheme, input, held, self.bias)
        return self.scheme.multiply(input, held, self.bias)


class PackedConv2d(PackedLayer, torch.nn.Conv2d):  # type: ignore[misc]
    """A convolution with a packed weight, restored before every use."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        held = self.held
        weight = held if isinstance(held, torch.Tensor) else self.scheme.restore(held)
        return self._conv_forward(input, weight, self.bias)


def packed_layer(layer: Any, scheme: Scheme, tensors: Tensors, restores: bool) -> PackedLayer:
    """The layer with its weight in `tensors`: itself, or another one if the scheme replaces it.

    restores: see PackedLayer. What else the layer has, as its bias, is kept.
    """
    weight, kind = layer.weight, PackedLinear
    if isinstance(layer, torch.nn.Conv2d):
        kind = PackedConv2d
    made: Any = _twin(layer) if scheme.replaces else layer
    del made._parameters["weight"]
    made.__class__ = kind
    made.scheme, made.restores = scheme, restores
    made.weight_shape, made.weight_dtype = weight.shape, weight.dtype
    made.tensor_dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        made.register_buffer(NAMED + name, _uncastable(tensor), persistent=False)
    return made


def _twin(layer: Any) -> Any:
    # another object with the same contents, but for an adapter in the place of its forward
    twin = object.__new__(type(layer))
    contents = {name: value for name, value in vars(layer).items() if name != "forward"}
    twin.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in contents.items()}
    return twin


def _uncastable(tensor: torch.Tensor) -> torch.Tensor:
    # as bytes, for `module.to(dtype)` would round floats
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.is_floating_point() else tensor
