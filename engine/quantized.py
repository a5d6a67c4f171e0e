"""A base quantized as its recipe wants it, with an accuracy recovery adapter if it names one.

Such an adapter makes up for what quantization loses, and belongs to the base: its layers are
quantized and no others, and it acts from then on, in the model's precision.
Upstream: ostris/ai-toolkit@27a03a91 toolkit/util/quantize.py::quantize_model
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch

from ..adapters.bind import BoundLayer, bind
from ..adapters.lora import LiveLora, LoraLayer
from ..adapters.read import Adapter
from ..core.errors import AdapterError
from ..core.quantizing import Quantization, is_quantizing, resolve_quantization
from ..core.requests import Recipe
from ..core.specs import ModelSpec
from ..core.versions import LATEST, Profile
from ..pipelines._loading import LoadedModel
from ..quantization.base import quantize_base
from ..quantization.cache import PackedCache
from .plan import adapter_files, choose_profile
from .training_adapters import locate_base_lora
from .weights import cache_folder


@dataclass(frozen=True)
class Quantized:
    """How a base is to be quantized, with the recovery adapter that it gets."""

    quantization: Quantization
    recovery: Adapter | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for those that make the same base."""
        return (*astuple(self.quantization), self.recovery.digest if self.recovery else "")


def open_quantized(
    spec: ModelSpec, recipe: Recipe, open_adapter: Callable[[str], Adapter]
) -> Quantized:
    """What the recipe asks for. open_adapter: gives the adapter at a path.

    Raises InvalidInputError for what the trainer does not have or fails on, and AdapterError for
    a recovery adapter that it fails on.
    """
    quantization = resolve_quantization(spec, recipe, _profile(spec, recipe, open_adapter))
    if not quantization.recovery:
        return Quantized(quantization, None)
    adapter = open_adapter(locate_base_lora(quantization.recovery))
    if other := [layer for layer in adapter.layers if type(layer) is not LoraLayer]:
        raise AdapterError(
            f"{adapter.path}: {other[0].name} is a {other[0].kind} layer; the trainer fails at "
            "accuracy recovery adapters that are no plain LoRA: use one, or leave out the |"
        )
    return Quantized(quantization, adapter)


def spec_to_load(spec: ModelSpec, quantized: Quantized) -> ModelSpec:
    """The spec that a model is loaded by if it is quantized then."""
    if not (quantized.quantization.encoders and spec.quantizing.encoders_uncast):
        return spec
    return replace(spec, uncast=(*spec.uncast, *spec.quantizing.encoders))


def quantize_model(
    model: LoadedModel, quantized: Quantized, base: Any, on_status: Callable[[str], None]
) -> dict[str, int]:
    """Quantizes a model that was just loaded. Returns how many layers of each part now are.

    base: what its weights are, as JSON can tell it; packed weights are kept for the next time.
    """
    bound = _bind(quantized.recovery, model) if quantized.recovery else ()
    cache = PackedCache(cache_folder() / "quantized", [base, quantized.key, model.device.type])
    covered = {one.path for one in bound}
    counts = quantize_base(
        model.modules, model.spec, quantized.quantization, model.device, cache, covered, on_status
    )
    _attach(bound, model)
    return counts


def _profile(spec: ModelSpec, recipe: Recipe, open_adapter: Callable[[str], Adapter]) -> Profile:
    if not is_quantizing(recipe):
        return LATEST
    files = [path for ref in recipe.adapters for path, _ in adapter_files(spec, ref)]
    metadata = tuple(open_adapter(path).metadata for path in files)
    return choose_profile(recipe, spec, metadata)


def _bind(adapter: Adapter, model: LoadedModel) -> tuple[BoundLayer, ...]:
    bound = bind(adapter, model.spec, model.modules)
    for one in bound:
        if one.path.partition(".")[0] not in model.spec.lora.denoisers:
            raise AdapterError(
                f"{adapter.path}: {one.layer.name} is for {one.path}; an accuracy recovery adapter "
                "is a LoRA of the denoiser"
            )
    return bound


def _attach(bound: Sequence[BoundLayer], model: LoadedModel) -> None:
    for one in bound:
        component, _, path = one.path.partition(".")
        module = model.modules[component].get_submodule(path)
        layer = replace(_rounded(one.layer, model.dtype), alpha=None)
        live = LiveLora(layer, module, 1.0, model.dtype)
        live.of_base = True
        live.install()


def _rounded(layer: Any, dtype: torch.dtype) -> Any:
    tensors = {field.name: getattr(layer, field.name) for field in fields(layer)}
    parts = {k: t.to(dtype) for k, t in tensors.items() if isinstance(t, torch.Tensor)}
    return replace(layer, **parts)
