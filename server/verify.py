"""Whether a LoRA fits a model, whether it acts, and whether the base is whole after it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import Field

from ..core.errors import InvalidInputError
from ..core.requests import MODES
from ..pipelines._registry import get_model
from .image_answers import wait_for
from .lora_report import lora_report
from .loras import Model, Strength, model_of, named
from .pictures import read_pictures
from .routes import KEY, KeyFirstRoute, base_url, service_of
from .schemas import InferenceRequest, Lora, Name, Prompt, Strict
from .service import Service
from .translate import adapter_refs, settle

router = APIRouter(route_class=KeyFirstRoute, tags=["LoRAs"])
DRAWN = ("seed", "base", "scales", "base_restored", "zero_is_base")
NOT_DRAWN = dict.fromkeys(DRAWN)


class Sweep(Prompt):
    """A sample to draw without the LoRAs, at each scale, and without them again."""

    scales: Annotated[list[Strength], Field(min_length=1, max_length=16)] = Field(
        [0.0, 0.5, 1.0], description="times each LoRA's network_multiplier"
    )
    mode: Literal[MODES] = "as_trainer"  # type: ignore[valid-type]


class Verify(Strict):
    """LoRAs to look at. Without a sweep no weights are read."""

    model: Model = ""
    weights: Name = ""
    lora: Lora | None = None
    loras: list[Lora] | None = Field(None, min_length=1, max_length=16)
    sweep: Sweep | None = None

    @property
    def given(self) -> list[Lora]:
        """The LoRAs, however they were given."""
        if (self.lora is None) == (self.loras is None):
            raise InvalidInputError(
                "a body has `lora` with one LoRA or `loras` with a list of them"
            )
        return [self.lora] if self.lora else self.loras or []


@router.post("/v1/loras/verify", dependencies=[KEY])
async def verify(body: Verify, request: Request) -> dict[str, Any]:
    """How LoRAs fit a model; with a sweep, also what they do to a picture at several scales.

    A LoRA that does not fit is no error here: its report says so, and nothing is drawn.
    """
    service = service_of(request)
    with named(service):
        model = model_of(service, body.model).id
        reports = await run_in_threadpool(_reports, service, model, body)
    said = {
        "model": model,
        "fits": _all([report["fits"] for report in reports]),
        "acts": any(report["effective"] for report in reports),
        "reports": reports,
    }
    if body.sweep is None:
        return said
    if said["fits"] is False:
        return said | NOT_DRAWN
    base = settle(_base(body, body.sweep, model), service.settings)  # with one seed for all
    return said | await _sweep(request, base, body.given, body.sweep.scales)


def _all(fits: list[bool | None]) -> bool | None:
    # None: some may not fit
    return False if False in fits else None if None in fits else True


def _reports(service: Service, model: str, body: Verify) -> list[dict[str, Any]]:
    engine, settings = service.engine, service.settings
    loras = [service.loras.of(model).by_file(lora) for lora in body.given]
    adapter_refs(loras, get_model(model), settings)  # what cannot act together is refused
    return [lora_report(engine, settings, model, lora, body.weights) for lora in loras]


def _base(body: Verify, sweep: Sweep, model: str) -> InferenceRequest:
    prompt = sweep.model_dump(include=set(Prompt.model_fields))
    if get_model(model).task == "video":
        prompt["num_frames"] = prompt["num_frames"] or 1  # a png, which has every level, holds one
    given = {"model": model, "weights": body.weights, "loras": [], "mode": sweep.mode}
    return InferenceRequest.model_validate(given | {"prompts": [prompt], "output_format": "png"})


async def _sweep(
    request: Request, asked: InferenceRequest, loras: Sequence[Lora], scales: Sequence[float]
) -> dict[str, Any]:
    service, address = service_of(request), base_url(request)
    pictures = await run_in_threadpool(read_pictures, asked, service.settings)

    async def draw(scale: float | None) -> dict[str, Any]:
        scaled = [] if scale is None else [_scaled(lora, scale) for lora in loras]
        body = asked.model_copy(update={"loras": scaled})
        ticket = await run_in_threadpool(service.submit, body, pictures)
        row = await wait_for(ticket, request, service)
        assert row.outputs is not None
        return row.outputs[0]

    base = await draw(None)
    drawn = {scale: await draw(scale) for scale in dict.fromkeys((0.0, *scales))}
    again = await draw(None)
    rows = {scale: _compared(service, base, one) for scale, one in drawn.items()}
    return {
        "seed": base["seed"],
        "base": service.url(base["id"], address),
        "scales": [
            {"scale": scale, **rows[scale], "url": service.url(drawn[scale]["id"], address)}
            for scale in scales
        ],
        "base_restored": _compared(service, base, again)["identical"],
        "zero_is_base": rows[0.0]["identical"],
    }


def _scaled(lora: Lora, scale: float) -> Lora:
    return lora.model_copy(update={"network_multiplier": lora.network_multiplier * scale})


def _compared(service: Service, base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    # how far a picture is from the base's, in levels of 0 to 255
    files = [service.file(one["id"]).read_bytes() for one in (base, other)]
    levels = [np.asarray(Image.open(io.BytesIO(file))).astype(np.int32) for file in files]
    distance = np.abs(levels[0] - levels[1])
    return {
        "mse": float((distance**2).mean()),
        "max": int(distance.max()),
        "identical": files[0] == files[1],
    }
