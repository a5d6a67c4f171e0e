"""The server's own LoRAs: which ones requests get that name none, and by which nicknames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field

from ..core.errors import AitkError, InvalidInputError, one_of
from ..core.specs import ModelSpec
from ..pipelines._registry import get_model
from .lora_report import lora_report, shown_name
from .lora_set import ModelLoras
from .routes import ADMIN, KEY, KeyFirstRoute, service_of
from .schemas import Lora, Name, Strict
from .service import Service

router = APIRouter(route_class=KeyFirstRoute, tags=["LoRAs"])
T = TypeVar("T")
ALL = "all"
SIDES = {"transformer": "high", "transformer_2": "low", "high": "high", "low": "low"}
TARGETS = {"high": "transformer", "low": "transformer_2", None: ALL}
MERGE_MODES = {"auto": "as_trainer", "merge": "merged", "dynamic": "live"}
Nickname = Annotated[str, Field(max_length=200, pattern=r"\S")]
Path = Annotated[str, Field(min_length=1, max_length=2_000)]
Strength = Annotated[float, Field(ge=-100, le=100)]
Model = Annotated[Name, Field(description="the server's own, or the one in memory, if left out")]
Target = Annotated[
    Name | None,
    Field(description="transformer (high noise) or transformer_2 (low noise) of two experts"),
]


class SetLora(Strict):
    """What acts from now on. One value holds for all nicknames, a list has one for each."""

    lora_nickname: Nickname | Annotated[list[Nickname], Field(max_length=16)] = Field(
        description="[] is no LoRA at all"
    )
    lora_path: Path | list[Path | None] | None = Field(
        None, description="as in a request's loras; null is the nickname's, or the nickname itself"
    )
    target: Target | list[Target] = None
    strength: Strength | list[Strength] = 1.0
    merge_mode: Literal["auto", "merge", "dynamic"] = "auto"
    model: Model = ""
    allow_partial: bool = Field(False, description="leave out layers that do not fit the model")


class MergeLora(Strict):
    """With which strength what acts is merged into the weights."""

    target: Target = None
    strength: Strength = 1.0
    model: Model = ""


class UnmergeLora(Strict):
    """What acts no more."""

    target: Target = None
    model: Model = ""


@router.post("/v1/set_lora", dependencies=[ADMIN])
def set_lora(body: SetLora, request: Request) -> dict[str, Any]:
    """Makes these LoRAs all that act for requests that name none; all are taken, or none is."""
    service = service_of(request)
    spec = model_of(service, body.model)
    names = _names(body)
    paths = _each(body.lora_path, len(names), "lora_path")
    targets = _each(body.target, len(names), "target")
    strengths = _each(body.strength, len(names), "strength")

    def change(loras: ModelLoras) -> ModelLoras:
        given = zip(names, paths, targets, strict=True)
        entries = {name: _entry(loras, body, spec, name, path, side) for name, path, side in given}
        update = {
            "known": {**loras.known, **entries},
            "active": dict(zip(names, strengths, strict=True)),
            "mode": MERGE_MODES[body.merge_mode],
        }
        return loras.model_copy(update=update)

    with named(service):
        service.loras.change(spec.id, change)
    done = f"Loaded LoRA adapter(s): {', '.join(names)}" if names else "No LoRA acts"
    return {"status": "ok", "message": done, "model": spec.id}


@router.post("/v1/merge_lora_weights", dependencies=[ADMIN])
def merge(request: Request, body: MergeLora | None = None) -> dict[str, Any]:
    """Merges what acts into the weights, each with this strength, whatever it was before."""
    service, body = service_of(request), body or MergeLora()
    spec = model_of(service, body.model)
    side = _side(body.target, spec)

    def change(loras: ModelLoras) -> ModelLoras:
        _check_mergeable(loras, side, spec)
        active = dict.fromkeys(loras.active, body.strength)
        return loras.model_copy(update={"active": active, "mode": "merged"})

    with named(service):
        service.loras.change(spec.id, change)
    return {"status": "ok", "message": "Merged LoRA weights", "model": spec.id}


@router.post("/v1/unmerge_lora_weights", dependencies=[ADMIN])
def unmerge(request: Request, body: UnmergeLora | None = None) -> dict[str, Any]:
    """Makes the LoRAs act no more: requests that name none get the base, bit for bit."""
    service, body = service_of(request), body or UnmergeLora()
    spec = model_of(service, body.model)
    side = _side(body.target, spec)

    def change(loras: ModelLoras) -> ModelLoras:
        others = {
            name: strength
            for name, strength in loras.active.items()
            if side is not None and loras.known[name].transformer != side
        }
        return loras.model_copy(update={"active": others})

    with named(service):
        service.loras.change(spec.id, change)
    return {"status": "ok", "message": "Unmerged LoRA weights", "model": spec.id}


@router.get("/v1/list_loras", dependencies=[KEY])
def list_loras(request: Request, model: str | None = None) -> dict[str, Any]:
    """All nicknames with what is known of their files, and what acts for requests without LoRAs."""
    service = service_of(request)
    all_models = service.loras.models()
    if model:
        id = get_model(model).id
        all_models = {id: service.loras.of(id)}
    active: dict[str, list[dict[str, Any]]] = {}
    for id, loras in all_models.items():
        for name, strength in loras.active.items():
            target = TARGETS[loras.known[name].transformer]
            active.setdefault(target, []).append(_active(id, loras, name, strength))
    known = [
        _known(service, id, name, lora)
        for id, loras in all_models.items()
        for name, lora in loras.known.items()
    ]
    return {"loaded_adapters": known, "active": active}


@contextmanager
def named(service: Service) -> Iterator[None]:
    """Errors in it call files as clients do."""
    try:
        yield
    except AitkError as error:
        raise service.as_named(error) from error


def model_of(service: Service, model: str) -> ModelSpec:
    """The model of a body: the one it names, the server's own, or the one in memory."""
    loaded = service.engine.loaded
    model = model or service.settings.model or (loaded[0] if loaded else "")
    if not model:
        raise InvalidInputError(
            "no `model` is named, the server has none of its own, and none is in memory; name one: "
            "see /v1/models"
        )
    return get_model(model)


def _names(body: SetLora) -> list[str]:
    names = body.lora_nickname if isinstance(body.lora_nickname, list) else [body.lora_nickname]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            f"lora_nickname names {', '.join(names)}; each LoRA needs a nickname of its own"
        )
    return names


def _each(value: T | list[T], count: int, field: str) -> list[T]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidInputError(
            f"{field} has {len(value)} values for {count} nicknames; give one for each, or a "
            "single one for all"
        )
    return value


def _side(target: str | None, spec: ModelSpec) -> Any:
    # None is the whole model
    if target in (None, ALL):
        return None
    if spec.lora.experts and target in SIDES:
        return SIDES[target]
    if not spec.lora.experts and target in spec.lora.denoisers:
        return None
    modules = ("high", "low") if spec.lora.experts else ()
    raise one_of(f"target for {spec.id}", target, (ALL, *spec.lora.denoisers, *modules))


def _entry(
    loras: ModelLoras,
    body: SetLora,
    spec: ModelSpec,
    name: str,
    path: str | None,
    target: str | None,
) -> Lora:
    known = loras.known.get(name) if path is None else None
    side = _side(target, spec) or (known.transformer if known and target is None else None)
    if spec.lora.experts and side is None:
        raise InvalidInputError(
            f"{spec.id} has two experts; give {name!r} the target transformer (high noise) or "
            "transformer_2 (low noise)"
        )
    partial = body.allow_partial
    if known and "allow_partial" not in body.model_fields_set:
        partial = known.allow_partial
    file = known.path if known else path or name
    return Lora(path=file, transformer=side, network_multiplier=1.0, allow_partial=partial)


def _check_mergeable(loras: ModelLoras, side: str | None, spec: ModelSpec) -> None:
    sides = {loras.known[name].transformer for name in loras.active}
    if not sides or (side is not None and side not in sides):
        raise InvalidInputError(
            f"nothing acts on {TARGETS[side]} of {spec.id}, so there is nothing to merge; make a "
            "LoRA act with set_lora first"
        )
    if side is not None and sides != {side}:
        raise InvalidInputError(
            "both experts have a LoRA, and a pair acts in one mode with one strength, as in the "
            "trainer; leave `target` out"
        )


def _active(model: str, loras: ModelLoras, name: str, strength: float) -> dict[str, Any]:
    return {
        "nickname": name,
        "path": shown_name(loras.known[name].path),
        "model": model,
        "merged": loras.mode == "merged",
        "strength": strength,
        "mode": loras.mode,
    }


def _known(service: Service, model: str, name: str, lora: Lora) -> dict[str, Any]:
    report, error = None, None
    try:
        report = lora_report(service.engine, service.settings, model, lora)
    except AitkError as problem:  # a file that was taken away since must not hide the others
        error = str(service.as_named(problem))
    return {
        "nickname": name,
        "path": shown_name(lora.path),
        "model": model,
        "transformer": lora.transformer,
        "report": report,
        "error": error,
    }
