"""What the server is and holds: its models, its health, its numbers."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from ..core.specs import ModelSpec
from ..engine.record import library_versions
from ..pipelines._registry import get_model, list_models
from .routes import KEY, KeyFirstRoute, service_of

router = APIRouter(route_class=KeyFirstRoute, tags=["server"])
STARTED = int(time.time())


@router.get("/v1/models", dependencies=[KEY])
def models() -> dict[str, Any]:
    """All models: as OpenAI's clients expect them, and with the trainer's defaults."""
    specs = list_models()
    return {
        "object": "list",
        "data": [_model(spec) for spec in specs],
        "models": [_row(spec) for spec in specs],
    }


@router.get("/v1/models/{id:path}", dependencies=[KEY])
def model(id: str) -> dict[str, Any]:
    """One model."""
    spec = get_model(id)
    return _model(spec) | _row(spec)


@router.get("/health", responses={503: {"description": "No request is drawn"}})
def health(request: Request, response: Response) -> dict[str, Any]:
    """Whether requests are drawn: 503 if not."""
    service = service_of(request)
    alive = service.queue.is_alive
    response.status_code = 200 if alive else 503
    model, weights, dtype = service.engine.loaded or (None, None, None)
    return {
        "status": "healthy" if alive else "unhealthy",
        "device": str(service.engine.device),
        "model": model,
        "weights": weights and weights.rsplit("/", 1)[-1],
        "dtype": dtype,
        "requests_waiting": len(service.queue),
        "libraries": library_versions(),
    }


@router.get("/metrics", dependencies=[KEY], response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Numbers in Prometheus's text format."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


def _model(spec: ModelSpec) -> dict[str, Any]:
    return {"id": spec.id, "object": "model", "created": STARTED, "owned_by": spec.repo_id}


def _row(spec: ModelSpec) -> dict[str, Any]:
    defaults = spec.defaults
    return {
        "id": spec.id,
        "title": spec.title,
        "task": spec.task,
        "base_model": spec.repo_id,
        "resolution_divisor": spec.multiple_of,
        "default_steps": defaults.steps,
        "default_guidance_scale": defaults.guidance_scale,
        "requires_control_image": spec.control_images.required > 0,
        "control_images": asdict(spec.control_images),
        "is_video_model": spec.task == "video",
        "default_num_frames": defaults.num_frames,
        "default_fps": defaults.fps,
        "default_width": defaults.width,
        "default_height": defaults.height,
        "samplers": list(spec.samplers),
        "experts": bool(spec.lora.experts),
    }
