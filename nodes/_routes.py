"""What the editor's page asks for: what models take, and which LoRA files fit one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..core.errors import AitkError
from ..core.specs import ModelSpec
from ..pipelines._registry import get_model, list_models
from . import _comfy

PREFIX = "/ai_toolkit"
SOCKETS = 3  # control_image_1 to _3


def register() -> None:
    """Adds the routes to ComfyUI's server; does nothing where none runs."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    routes = getattr(getattr(server, "instance", None), "routes", None)
    if routes is None or any(getattr(route, "path", "").startswith(PREFIX) for route in routes):
        return  # outside of ComfyUI, or the pack is there twice
    routes.get(f"{PREFIX}/models")(_handler(lambda _query: models()))
    routes.get(f"{PREFIX}/loras")(_handler(lambda query: loras(query.get("model", ""))))


def models() -> dict[str, Any]:
    """Every model's id -> title, defaults, samplers, and the inputs of our nodes it has no use for.

    ignored: they change nothing. refused: anything but their default is an error.
    """
    return {
        spec.id: {
            "title": spec.title,
            "defaults": asdict(spec.defaults),
            "samplers": list(spec.samplers),
            "ignored": ignored(spec),
            "refused": refused(spec),
        }
        for spec in list_models()
    }


def loras(model: str) -> dict[str, Any]:
    """Name of each file in ComfyUI's loras list -> whether it fits a model, and what it is for.

    fits is None where the file does not tell. Raises UnknownModelError.
    """
    from ..adapters.scan import scan

    spec = get_model(model)
    known = frozenset(other.lora.base_model for other in list_models())
    found = {}
    for name, path in _comfy.lora_files().items():
        seen = scan(path)
        found[name] = {"fits": seen.fits(spec, known), "made_for": seen.title}
    return found


def ignored(spec: ModelSpec) -> list[str]:
    """Inputs that change nothing in a model's pictures."""
    names = [] if spec.negative_prompt else ["negative_prompt"]
    return names if spec.task == "video" else [*names, "num_frames", "fps"]


def refused(spec: ModelSpec) -> list[str]:
    """Inputs that a model has no place for."""
    images, video = spec.control_images, spec.task == "video"
    absent = {
        "control_index": not images.index,
        "doubled_control": not images.doubled,
        "latent": video,
        "denoise": video,
        "switches": not spec.switches,
        "lora_name_low": not spec.lora.experts,
        "role": not spec.base_loras.fields,
    }
    sockets = [f"control_image_{n}" for n in range(1, SOCKETS + 1) if n > images.most]
    return [*sockets, *(name for name, is_absent in absent.items() if is_absent)]


def _handler(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # files are read in another thread, so that the server goes on
    async def handle(request: Any) -> Any:
        import asyncio

        from aiohttp import web

        try:
            return web.json_response(await asyncio.to_thread(answer, request.query))
        except AitkError as error:
            body = {"error": {"code": error.code, "message": str(error)}}
            return web.json_response(body, status=error.http_status)

    return handle
