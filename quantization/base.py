"""A loaded model quantized part by part: which of its layers, by the trainer's rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..core.quantizing import Quantization
from ..core.specs import ModelSpec
from .cache import PackedCache
from .module import PackedLayer, packed_layer
from .scheme import Scheme, Tensors
from .schemes import scheme_of


@dataclass(frozen=True)
class Part:
    """One component to quantize. only: its layers' paths, if not all that fit.

    restores, restores_first: see core.quantizing.Quantization.
    """

    name: str
    qtype: str
    keeps: tuple[str, ...] = ()
    only: Collection[str] | None = None
    restores: bool = False
    restores_first: bool = False

    def multiplies_restored(self, scheme: Scheme) -> bool:
        """Whether its layers multiply with restored weights; those that replaced others never.

        The trainer's own qtypes do so below an adapter that was there before.
        """
        first = self.restores_first or (self.only is not None and scheme.own)
        taken_over = first or (self.restores and not scheme.own)
        return taken_over and not scheme.replaces


def quantize_base(
    modules: Mapping[str, Any],
    spec: ModelSpec,
    quantization: Quantization,
    device: torch.device,
    cache: PackedCache,
    covered: Collection[str] = (),
    on_status: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Quantizes the parts of a model in place. Returns how many layers of each now are.

    modules: component -> module on the CPU. device: where it is computed. covered: paths
    (component.module) of the layers that a recovery adapter is for. on_status: told of each layer.
    """
    counts = {}
    for part in _parts(spec, quantization, covered):
        counts[part.name] = quantize_part(modules[part.name], part, device, cache, on_status)
    return counts


def quantize_part(
    root: Any,
    part: Part,
    device: torch.device,
    cache: PackedCache | None = None,
    on_status: Callable[[str], None] = lambda _: None,
) -> int:
    """Quantizes one component in place. Returns the number of its layers that now are.

    cache: where they are kept; nowhere if not given.
    """
    scheme = scheme_of(part.qtype)
    if scheme is None:
        return 0
    layers = dict(_layers(root, scheme, part))
    shapes = {path: layer.weight.shape for path, layer in layers.items()}
    packed = cache.read(part.name, shapes) if cache else None
    kept: dict[str, Tensors] = {}
    restores = part.multiplies_restored(scheme)
    for done, (path, layer) in enumerate(layers.items()):
        on_status(f"Quantizing {part.name} to {part.qtype}, {done} of {len(layers)} layers")
        tensors = packed[path] if packed else _pack(layer, scheme, device)
        kept[path] = tensors
        _put(root, path, packed_layer(layer, scheme, tensors, restores))
    if cache and packed is None:
        cache.write(part.name, shapes, kept)
    return len(layers)


def _parts(spec: ModelSpec, quantization: Quantization, covered: Collection[str]) -> Iterator[Part]:
    for name in spec.lora.denoisers if quantization.denoiser else ():
        starts = f"{name}."
        only = {path.removeprefix(starts) for path in covered if path.startswith(starts)}
        yield Part(
            name,
            quantization.denoiser,
            quantization.keeps if not quantization.recovery else (),
            only if quantization.recovery else None,
            name in quantization.restores,
            name in quantization.restores_first,
        )
    for name in spec.quantizing.encoders if quantization.encoders else ():
        yield Part(
            name,
            quantization.encoders,
            restores=name in quantization.restores,
            restores_first=name in quantization.restores_first,
        )


def _layers(root: Any, scheme: Scheme, part: Part) -> Iterator[tuple[str, Any]]:
    for path, layer in root.named_modules():
        chosen = part.only is None or path in part.only
        if not chosen or any(fnmatchcase(path, pattern) for pattern in part.keeps):
            continue
        if isinstance(layer, PackedLayer) or not isinstance(layer, scheme.kinds):
            continue
        if scheme.fits(layer.get_parameter("weight").shape):
            yield path, layer


def _pack(layer: Any, scheme: Scheme, device: torch.device) -> Tensors:
    with torch.no_grad():
        tensors = scheme.pack(layer.weight.detach().to(device))
    return {name: tensor.to("cpu") for name, tensor in tensors.items()}


def _put(root: Any, path: str, layer: PackedLayer) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, layer)
