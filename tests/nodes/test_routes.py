"""What the page is told of models and LoRA files, outside of ComfyUI."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ai_toolkit_inference import NODE_CLASS_MAPPINGS, SampleRequest, list_models
from ai_toolkit_inference.core.errors import InvalidInputError, UnknownModelError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.core.versions import LATEST
from ai_toolkit_inference.nodes import _comfy, _routes

SPECS = pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)


def input_names(monkeypatch: pytest.MonkeyPatch, node: str) -> set[str]:
    monkeypatch.setattr(_comfy, "list_loras", list)
    kinds = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    return {name for kind in ("required", "optional") for name in kinds[kind]}


def test_every_name_is_an_input_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = input_names(monkeypatch, "AIToolkitSample") | input_names(
        monkeypatch, "ApplyAIToolkitLoRA"
    )
    told = _routes.models()
    assert list(told) == [spec.id for spec in list_models()]
    for model in told.values():
        assert {*model["ignored"], *model["refused"], *model["defaults"]} <= ours
    json.dumps(told)


@SPECS
def test_refused_switches_are_refused_and_others_are_not(spec: Any) -> None:
    for name, value in (("control_index", 1), ("doubled_control", True)):
        request = SampleRequest(
            recipe=Recipe(spec.id),
            control_images=(SimpleNamespace(mode="RGB"),) * spec.control_images.required,
            **{name: value},
        )
        if name in _routes.refused(spec):
            with pytest.raises(InvalidInputError, match=name):
                resolve(spec, request, LATEST)
        else:
            resolve(spec, request, LATEST)


@SPECS
def test_sockets_are_as_many_as_a_model_takes(spec: Any) -> None:
    hidden = [name for name in _routes.refused(spec) if name.startswith("control_image_")]
    assert len(hidden) == max(0, 3 - spec.control_images.most)


def test_register_does_nothing_outside_of_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server", raising=False)
    _routes.register()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=type("P", (), {})))
    _routes.register()


def test_register_adds_the_routes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack that is there twice must not keep ComfyUI from starting."""
    web = pytest.importorskip("aiohttp.web")
    routes = web.RouteTableDef()
    server = SimpleNamespace(instance=SimpleNamespace(routes=routes))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))
    _routes.register()
    _routes.register()
    assert [route.path for route in routes] == ["/ai_toolkit/models", "/ai_toolkit/loras"]
    web.Application().add_routes(routes)
    assert asyncio.run(routes[1].handler(SimpleNamespace(query={"model": "x"}))).status == 404


@pytest.mark.parametrize("model", ["", "nothing", "../../etc/passwd"])
def test_an_unknown_model_is_refused(model: str) -> None:
    with pytest.raises(UnknownModelError, match="allowed"):
        _routes.loras(model)
