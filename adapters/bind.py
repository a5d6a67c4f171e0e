"""An adapter's layers matched to a model's modules: all, or an error that says which not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core.errors import AdapterError
from ..core.specs import LoraLayout, ModelSpec
from .read import Adapter, LoraLayer


@dataclass(frozen=True)
class BoundLayer:
    """A layer and the module it changes. path: component.module, e.g. unet.conv_in."""

    path: str
    module: torch.nn.Module
    layer: LoraLayer
    scale: float


@dataclass(frozen=True)
class Binding:
    """How an adapter fits a model. Lists hold names as in the file."""

    bound: tuple[BoundLayer, ...]
    unbound: tuple[str, ...]
    mismatched: tuple[str, ...]  # with both shapes

    @property
    def complete(self) -> bool:
        return not self.unbound and not self.mismatched


def bind(
    adapter: Adapter, spec: ModelSpec, modules: Mapping[str, torch.nn.Module]
) -> tuple[BoundLayer, ...]:
    """Every layer of the adapter with its module.

    modules: component name -> module, as loaded.
    Raises AdapterError with counts and the first names if any layer finds no module or the wrong
    shape: a LoRA that is half applied is not the trained one.
    """
    binding = match(adapter, spec, modules)
    if not binding.complete:
        raise AdapterError(_refusal(adapter, spec, binding))
    return binding.bound


def check_layout(adapter: Adapter, spec: ModelSpec) -> None:
    """Raises AdapterError if layers are not even named as the model's are; needs no weights."""
    prefixes = tuple(prefix + spec.lora.separator for prefix, _ in spec.lora.prefixes)
    strangers = [layer.name for layer in adapter.layers if not layer.name.startswith(prefixes)]
    if strangers:
        raise AdapterError(_refusal(adapter, spec, Binding((), tuple(strangers), ())))


def match(adapter: Adapter, spec: ModelSpec, modules: Mapping[str, torch.nn.Module]) -> Binding:
    """How the adapter's layers fall on the model's modules, without refusing anything."""
    targets = layer_names(spec.lora, modules)
    bound, unbound, mismatched = [], [], []
    for layer in adapter.layers:
        if layer.name not in targets:
            unbound.append(layer.name)
            continue
        path, module = targets[layer.name]
        if problem := _shape_problem(layer, module):
            mismatched.append(f"{layer.name} ({problem})")
            continue
        bound.append(BoundLayer(path, module, layer, _scale(layer, spec.lora)))
    return Binding(tuple(bound), tuple(unbound), tuple(mismatched))


def layer_names(
    layout: LoraLayout, modules: Mapping[str, torch.nn.Module]
) -> dict[str, tuple[str, torch.nn.Module]]:
    """Name in a file -> (component.module path, module), for all that a LoRA can change."""
    targets = {}
    for prefix, component in layout.prefixes:
        for path, module in modules[component].named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                name = _name_in_file(component, path).replace(".", layout.separator)
                targets[prefix + layout.separator + name] = (f"{component}.{path}", module)
    return targets


def _name_in_file(component: str, path: str) -> str:
    # transformers 5.8 and newer dropped the `text_model` level of CLIP that files still name
    if component.startswith("text_encoder") and not path.startswith(("text_model", "text_proj")):
        return f"text_model.{path}"
    return path


def _scale(layer: LoraLayer, layout: LoraLayout) -> float:
    if not layout.alpha or not layer.alpha:
        return 1.0
    return layer.alpha / layer.rank


def _shape_problem(layer: LoraLayer, module: torch.nn.Module) -> str:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    wanted = (weight.shape[0], *weight.shape[1:])
    given = (layer.up.shape[0], *layer.down.shape[1:])
    if given == wanted and layer.up.shape[2:] == (1,) * (weight.dim() - 2):
        return ""
    return f"{list(layer.up.shape)} @ {list(layer.down.shape)} for {list(wanted)}"


def _refusal(adapter: Adapter, spec: ModelSpec, binding: Binding) -> str:
    total = len(adapter.layers)
    lines = [f"{adapter.path} does not fit {spec.id}: "]
    if binding.unbound:
        first = ", ".join(binding.unbound[:3])
        lines.append(f"{len(binding.unbound)} of {total} layers name no module of it ({first}); ")
    if binding.mismatched:
        first = ", ".join(binding.mismatched[:3])
        lines.append(f"{len(binding.mismatched)} of {total} have another shape ({first}); ")
    trained = adapter.metadata.get("ss_base_model_version", "unknown")
    lines.append(f"it was trained on {trained!r}: choose the model it was trained on")
    return "".join(lines)
