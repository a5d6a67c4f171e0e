"""An adapter's layers matched to a model's modules: all, or an error that says which not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ..core.errors import AdapterError
from ..core.specs import LoraLayout, ModelSpec
from .layer import Layer
from .layouts import detect_layout
from .lora import LoraLayer
from .names import DENOISER, SOLE_ENCODER, spellings, split_name
from .read import Adapter

SIDES = ("high", "low")  # the experts of a model with two
UNET_BLOCKS = re.compile(r"(down|up|mid|input|middle|output)_blocks?[._]")
NAMED = 3  # examples in a refusal


@dataclass(frozen=True)
class BoundLayer:
    """A layer and the module it changes. path: component.module, e.g. unet.conv_in."""

    path: str
    module: torch.nn.Module
    layer: Layer


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
    adapter: Adapter,
    spec: ModelSpec,
    modules: Mapping[str, torch.nn.Module],
    side: str = "",
    allow_partial: bool = False,
) -> tuple[BoundLayer, ...]:
    """Every layer of the adapter with its module.

    modules: component name -> module, as loaded. side: "high" or "low", the expert that the
    file is for, in models with two. allow_partial: leave out what does not fit.
    Raises AdapterError with counts and the first names if any layer finds no module or the wrong
    shape, for a LoRA that is half applied is not the trained one; and if nothing fits at all.
    """
    binding = match(adapter, spec, modules, side)
    check_fit(adapter, spec, binding, allow_partial)
    return binding.bound


def check_fit(adapter: Adapter, spec: ModelSpec, binding: Binding, allow_partial: bool) -> None:
    """Raises as bind does."""
    if not binding.bound or not (binding.complete or allow_partial):
        raise AdapterError(_refusal(adapter, spec, binding))


def check_layout(adapter: Adapter, spec: ModelSpec) -> None:
    """Raises AdapterError if the layers are named as another model's; needs no weights."""
    if names := strange_names(adapter, spec):
        raise AdapterError(_refusal(adapter, spec, Binding((), names, ())))


def strange_names(adapter: Adapter, spec: ModelSpec) -> tuple[str, ...]:
    """The layers that are named as another model's; needs no weights."""
    names = tuple(layer.name for layer in adapter.layers)
    layout = detect_layout(adapter.shapes)
    if layout is None or spec.id in layout.models:
        names = tuple(name for name in names if _is_strange(name, spec))
    return names


def match(
    adapter: Adapter, spec: ModelSpec, modules: Mapping[str, torch.nn.Module], side: str = ""
) -> Binding:
    """How the adapter's layers fall on the model's modules, without refusing anything."""
    index = _Index(spec, modules, side)
    bound, unbound, mismatched = [], [], []
    for layer in adapter.layers:
        targets = index.find(layer.name)
        if not targets:
            unbound.append(layer.name)
            continue
        parts = _split(layer, [module for _, module in targets])
        problems = [part.misfit(module) for part, (_, module) in zip(parts, targets, strict=True)]
        if any(problems):
            mismatched.append(f"{layer.name} ({'; '.join(filter(None, problems))})")
            continue
        for part, (path, module) in zip(parts, targets, strict=True):
            bound.append(BoundLayer(path, module, part))
    return Binding(tuple(bound), tuple(unbound), tuple(mismatched))


def layer_names(
    layout: LoraLayout, modules: Mapping[str, torch.nn.Module]
) -> dict[str, tuple[str, torch.nn.Module]]:
    """Name in the trainer's file -> (component.module path, module), for what a LoRA can change."""
    targets = {}
    for prefix, component in layout.prefixes:
        for path, module in modules[component].named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                name = _name_in_file(component, path)
                if layout.writes_original:
                    name = list(spellings(name, layout.original))[-1][0]
                name = name.replace(".", layout.separator)
                targets[prefix + layout.separator + name] = (f"{component}.{path}", module)
    return targets


class _Index:
    """Where the names of files lead: (part, separator, path, expert) -> modules."""

    def __init__(
        self, spec: ModelSpec, modules: Mapping[str, torch.nn.Module], side: str = ""
    ) -> None:
        self._expert = SIDES.index(side) if side else None
        self._two = len(spec.lora.denoisers) > 1
        self._targets: dict[Key, list[tuple[int, Target]]] = defaultdict(list)
        for component, part, expert in _parts(spec, modules):
            for path, module in modules[component].named_modules():
                if isinstance(getattr(module, "weight", None), torch.Tensor):
                    target = (f"{component}.{path}", module)
                    for name in _names_in_files(component, path):
                        self._add(part, expert, name, target, spec.lora)

    def _add(
        self, part: str, expert: int | None, path: str, target: Target, layout: LoraLayout
    ) -> None:
        original = layout.original if part == DENOISER else ""
        for name, position in spellings(path, original):
            for separator in "._":
                key = (part, separator, name.replace(".", separator), expert)
                self._targets[key].append((position, target))

    def find(self, name: str) -> list[Target]:
        """The modules that a layer of this name changes; several share a fused matrix."""
        parsed = split_name(name)
        expert = parsed.expert if parsed.expert is not None else self._expert
        if not self._two or parsed.part != DENOISER:
            expert = None
        found = self._targets.get((parsed.part, parsed.separator, parsed.path, expert), [])
        by_position = dict(found)
        if len(by_position) < len(found):  # names that differ in dots and underscores only
            return []
        return [by_position[position] for position in sorted(by_position)]


Key = tuple[str, str, str, "int | None"]
Target = tuple[str, torch.nn.Module]


def _parts(
    spec: ModelSpec, modules: Mapping[str, torch.nn.Module]
) -> Iterator[tuple[str, str, int | None]]:
    # component, what files call it, number of the expert
    denoisers = spec.lora.denoisers
    for number, component in enumerate(denoisers):
        yield component, DENOISER, number if len(denoisers) > 1 else None
    for component in modules:
        if component.startswith("text_encoder"):
            yield component, component, None
    if "text_encoder" in modules and "text_encoder_2" not in spec.components:
        yield "text_encoder", SOLE_ENCODER, None


def _names_in_files(component: str, path: str) -> tuple[str, ...]:
    # newer libraries save CLIP without its `text_model` level
    if not component.startswith("text_encoder"):
        return (path,)
    bare = path.removeprefix("text_model.")
    return bare, f"text_model.{bare}"


def _name_in_file(component: str, path: str) -> str:
    # transformers 5.8 and newer dropped the `text_model` level of CLIP that files still name
    if component.startswith("text_encoder") and not path.startswith(("text_model", "text_proj")):
        return f"text_model.{path}"
    return path


def _is_strange(name: str, spec: ModelSpec) -> bool:
    # whether the model lacks the very part that the layer is in
    parsed = split_name(name)
    if parsed.part == SOLE_ENCODER:
        return "text_encoder" not in spec.components or "text_encoder_2" in spec.components
    if parsed.part != DENOISER:
        return parsed.part not in spec.components
    of_unet = UNET_BLOCKS.match(parsed.path) is not None
    return of_unet and "unet" not in spec.lora.denoisers


def _split(layer: Layer, modules: list[torch.nn.Module]) -> list[Layer]:
    # a layer of a fused matrix as one layer for each of its modules
    if len(modules) == 1 or type(layer) is not LoraLayer:
        return [layer] * len(modules)
    rows = [module.weight.shape[0] for module in modules]  # type: ignore[union-attr]
    if sum(rows) != layer.up.shape[0]:
        return [layer] * len(modules)
    return [replace(layer, up=up) for up in layer.up.split(rows)]


def _refusal(adapter: Adapter, spec: ModelSpec, binding: Binding) -> str:
    total = len(adapter.layers)
    lines = [f"{adapter.path} does not fit {spec.id}: "]
    if binding.unbound:
        first = ", ".join(binding.unbound[:NAMED])
        lines.append(f"{len(binding.unbound)} of {total} layers name no module of it ({first}); ")
    if binding.mismatched:
        first = ", ".join(binding.mismatched[:NAMED])
        lines.append(f"{len(binding.mismatched)} of {total} have another shape ({first}); ")
    trained = adapter.metadata.get("ss_base_model_version")
    layout = detect_layout(adapter.shapes)
    if trained is None and layout is not None:
        trained = layout.title
    lines.append(f"it was trained on {trained or 'unknown'!r}: choose the model it was trained on")
    return "".join(lines)
