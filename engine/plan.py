"""What a request comes down to before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..adapters.bind import SIDES
from ..adapters.names import DENOISER, split_name
from ..adapters.read import Adapter
from ..core.errors import AdapterError, InvalidInputError
from ..core.prompts import Settings, read_prompt, resolve
from ..core.quantizing import Quantization, is_quantizing, resolve_quantization
from ..core.requests import AdapterRef, Recipe, SampleRequest
from ..core.specs import ModelSpec
from ..core.versions import LATEST, Profile, get_profile, profile_for_adapters
from ..pipelines._registry import get_model
from .control_images import check_control_images
from .latents import check_latents, check_size
from .training_adapters import BaseLora, open_base_loras


@dataclass(frozen=True)
class PlannedAdapter:
    """An adapter as a request wants it. side: the expert it is for, in models with two."""

    adapter: Adapter
    multiplier: float
    side: str
    allow_partial: bool
    profile: Profile


@dataclass(frozen=True)
class Plan:
    """A request with everything decided that needs no weights."""

    spec: ModelSpec
    settings: Settings
    profile: Profile
    adapters: tuple[PlannedAdapter, ...]
    base_loras: tuple[BaseLora, ...]
    mode: str
    quantization: Quantization


def make_plan(request: SampleRequest, open_adapter: Callable[[str], Adapter]) -> Plan:
    """The request with everything decided, or refused, that needs no weights.

    open_adapter: gives the adapter at a path of the request.
    """
    recipe = request.recipe
    spec = get_model(recipe.model)
    check_control_images(request.control_images)
    _settings(spec, request, LATEST)  # refuses what it can before any file is opened or fetched
    opened = [
        (ref, side, open_adapter(path))
        for ref in recipe.adapters
        for path, side in adapter_files(spec, ref)
    ]
    base_loras = open_base_loras(spec, recipe, open_adapter)
    auto = recipe.trainer_version == "auto"
    metadata = tuple(adapter.metadata for _, _, adapter in opened)
    profile = choose_profile(recipe, spec, metadata, request.cached_text)
    _check_known(spec, profile)
    settings = _settings(spec, request, profile)
    adapters = tuple(
        PlannedAdapter(
            adapter,
            ref.multiplier if settings.multiplier is None else settings.multiplier,
            side,
            ref.allow_partial,
            profile_for_adapters((adapter.metadata,), spec.arch) if auto else profile,
        )
        for ref, side, adapter in opened
    )
    quantization = resolve_quantization(spec, recipe, profile)
    _check_mode(recipe.mode, adapters, quantization)
    if request.cached_text:
        _check_cached_text(adapters)
    return Plan(spec, settings, profile, adapters, base_loras, recipe.mode, quantization)


def choose_profile(
    recipe: Recipe,
    spec: ModelSpec,
    metadata: tuple[Mapping[str, str], ...],
    cached_text: bool = False,
) -> Profile:
    """The trainer's version that a recipe names, or that its adapters were saved by.

    metadata: of the adapters' files. cached_text: see SampleRequest.
    """
    if recipe.trainer_version != "auto":
        return get_profile(recipe.trainer_version)
    return profile_for_adapters(metadata, spec.arch, cached_text, is_quantizing(recipe))


def adapter_files(spec: ModelSpec, ref: AdapterRef) -> list[tuple[str, str]]:
    """(path, side) of an adapter: one file, or one for each expert of a model with two."""
    if not spec.lora.experts:
        if ref.low:
            raise InvalidInputError(
                f"{spec.id} has one transformer, so the low-noise file {ref.low!r} has no place; "
                "leave it out"
            )
        return [(ref.path, "")]
    pairs = zip((ref.path, ref.low), SIDES, strict=True)
    return [(path, side) for path, side in pairs if path]


def _check_known(spec: ModelSpec, profile: Profile) -> None:
    if spec.since and not profile.has(spec.since):
        raise InvalidInputError(
            f"trainer version {profile.version} does not have {spec.title} yet, so there is no "
            f"sample to match; choose trainer_version auto or {LATEST.version}"
        )


def _check_mode(
    mode: str, adapters: tuple[PlannedAdapter, ...], quantization: Quantization
) -> None:
    if mode == "merged" and adapters and quantization.denoiser:
        raise AdapterError(
            f"quantize is {quantization.text!r}, and merging into quantized weights would round "
            "the adapter away; the trainer never does: use mode as_trainer or live"
        )
    for planned in adapters:
        if mode == "merged" and planned.adapter.live_only:
            raise AdapterError(
                f"{planned.adapter.path} is a DoRA, which cannot be merged, and the trainer never "
                "does; use mode as_trainer or live"
            )


def _check_cached_text(adapters: tuple[PlannedAdapter, ...]) -> None:
    for adapter in (planned.adapter for planned in adapters):
        names = [x.name for x in adapter.layers if split_name(x.name).part != DENOISER]
        if names:
            raise AdapterError(
                f"{adapter.path} changes text encoders ({len(names)} layers, as {names[0]}), so "
                "its job cannot have encoded the prompts before training; turn cached_text off"
            )


def _settings(spec: ModelSpec, request: SampleRequest, profile: Profile) -> Settings:
    settings = resolve(spec, request, profile)
    if request.latents is not None:
        settings = _sized(spec, request, profile, settings)
    if request.control_images:
        spec.check_images(request, settings)
    return settings


def _sized(
    spec: ModelSpec, request: SampleRequest, profile: Profile, settings: Settings
) -> Settings:
    # given latents decide the size; a size asked for beside them must agree
    width, height = check_latents(spec, request.latents)
    _, flags = read_prompt(request, profile)
    for name, given in (("width", width), ("height", height)):
        asked = flags.get(name, getattr(request, name))
        if asked not in (0, given):
            raise InvalidInputError(f"{name}={asked} but the latents are {given} px; use 0")
    check_size(spec, width, height, spec.grid(profile), "latents")
    return replace(settings, width=width, height=height)
