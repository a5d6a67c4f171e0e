"""OpenAI's Images API: pictures of a text, and of a text and other pictures."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from ..core.errors import AitkError, InvalidInputError
from ..core.specs import ModelSpec
from ..pipelines._registry import get_model, list_models
from .errors import FieldError
from .image_answers import pictures, wait_for
from .image_bodies import Edit, Generation
from .image_forms import Source, read_form
from .image_stream import Stream
from .pictures import PictureReader
from .routes import KEY, KeyFirstRoute, service_of
from .settings import Settings

router = APIRouter(route_class=KeyFirstRoute, tags=["images"])
EDIT_BODIES = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image", "prompt"],
            "properties": {
                "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                "mask": {"type": "string", "format": "binary"},
                "prompt": {"type": "string"},
            },
            "additionalProperties": {"type": "string", "description": "the fields of JSON"},
        }
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["images", "prompt"],
            "properties": {
                "images": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"image_url": {"type": "string"}}},
                },
                "prompt": {"type": "string"},
            },
            "description": "and the fields of POST /v1/images/generations",
        }
    },
}


@router.post("/v1/images/generations", dependencies=[KEY])
async def generate(body: Generation, request: Request) -> Response:
    """Draws pictures of a text, and answers when they are there."""
    spec = _image_model(body, service_of(request).settings)
    if spec.control_images.required:
        raise FieldError("model", f"{spec.id} needs pictures; send them to POST /v1/images/edits")
    return await _drawn(request, body, [], "image_generation")


@router.post(
    "/v1/images/edits", dependencies=[KEY], openapi_extra={"requestBody": {"content": EDIT_BODIES}}
)
async def edit(request: Request) -> Response:
    """Draws pictures of a text and of other pictures, and answers when they are there."""
    settings = service_of(request).settings
    body, sources, mask = await _read_edit(request, settings)
    spec = _image_model(body, settings)
    _check_number(spec, sources, mask)
    images = await run_in_threadpool(_read_pictures, body, spec, settings, sources, mask)
    return await _drawn(request, body, images, "image_edit")


async def _drawn(request: Request, body: Generation, images: list[Any], kind: str) -> Response:
    service = service_of(request)
    if body.stream:
        return await Stream(service, body, kind).answer(request, images)
    ticket = await run_in_threadpool(service.submit, body.native(), [images] * body.n)
    row = await wait_for(ticket, request, service)
    content = await run_in_threadpool(pictures, service, request, body, row)
    return JSONResponse(content, headers={"X-Request-Id": ticket.id})


def _image_model(body: Generation, settings: Settings) -> ModelSpec:
    name = body.model or settings.model
    if not name:
        raise FieldError("model", "it is missing, and the server has none; see /v1/models")
    try:
        spec = get_model(name)
    except AitkError as error:
        raise FieldError("model", error) from error
    if spec.task == "video":
        raise FieldError("model", f"{spec.id} draws clips; send it to POST /v1/inference")
    return spec


async def _read_edit(
    request: Request, settings: Settings
) -> tuple[Edit, list[Source], Source | None]:
    """The body of an edit, and where its pictures and its mask are."""
    sources, mask = [], None
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        fields, sources, mask = await read_form(request, settings.max_body_mb * 2**20)
    else:
        fields = await _read_json(request)
    try:
        body = Edit.model_validate(fields)
    except ValidationError as error:
        problems = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(problems) from error
    urls = [(f"images.{index}", one.image_url) for index, one in enumerate(body.images)]
    return body, [*sources, *urls], mask or (body.mask and ("mask", body.mask.image_url))


async def _read_json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:  # of the text or of its encoding
        raise InvalidInputError(
            f"the body is no JSON ({error}); send application/json or multipart/form-data"
        ) from error


def _check_number(spec: ModelSpec, sources: list[Source], mask: Source | None) -> None:
    taken = spec.control_images
    if not taken.most:
        models = ", ".join(one.id for one in list_models() if _edits(one))
        raise FieldError("model", f"{spec.id} takes no pictures; models that do: {models}")
    if not sources:
        raise FieldError("image", f"there is none; {spec.id} takes 1 to {taken.most}")
    if len(sources) > taken.most:
        raise FieldError(
            sources[taken.most][0], f"{len(sources)} pictures; {spec.id} takes at most {taken.most}"
        )
    if mask and not taken.alpha:
        models = ", ".join(one.id for one in list_models() if one.control_images.alpha)
        raise FieldError(
            "mask", f"{spec.id} takes none; leave it out, or use a model that does: {models}"
        )


def _edits(spec: ModelSpec) -> bool:
    return spec.task != "video" and spec.control_images.most > 0


def _read_pictures(
    body: Edit, spec: ModelSpec, settings: Settings, sources: list[Source], mask: Source | None
) -> list[Any]:
    reader, paints = PictureReader(settings), spec.control_images.alpha and not body.ctrl_idx
    images = [reader.read(field, source, paints) for field, source in sources]
    if mask is not None:
        images[0] = _masked(images[0], reader.read(*mask, keep_alpha=True))
    return images


def _masked(image: Any, mask: Any) -> Any:
    """The picture with the alpha of a mask, which is transparent where to paint."""
    if mask.mode != "RGBA" or mask.size != image.size:
        raise FieldError(
            "mask",
            f"it is {mask.width}x{mask.height} px, {mask.mode}; it has to be as large as the "
            f"picture, {image.width}x{image.height} px, and RGBA: transparent where to paint",
        )
    image = image.convert("RGB")
    image.putalpha(mask.getchannel("A"))
    return image
