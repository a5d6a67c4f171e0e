"""What the Images API answers with, and how it waits for that."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

from fastapi import Request

from ..core.errors import CancelledError
from .errors import as_raised
from .image_bodies import Generation
from .routes import base_url
from .service import Service, Ticket
from .store import CANCELED, FAILED, Row

NO_TOKENS = {"image_tokens": 0, "text_tokens": 0}
USAGE = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": NO_TOKENS,
}


async def client_is_gone(request: Request) -> None:
    """Ends when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def wait_for(ticket: Ticket, request: Request, service: Service) -> Row:
    """The request once it is drawn; if the client hangs up before, it is canceled.

    Raises AitkError for one that failed or was canceled.
    """
    finished = asyncio.wrap_future(ticket.finished)
    gone = asyncio.create_task(client_is_gone(request))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not finished.done():
            service.queue.cancel(ticket.id)
    if not finished.done():
        raise CancelledError("the client hung up, so the request was canceled")
    return checked(finished.result())


def checked(row: Row) -> Row:
    """The request, if it was drawn. Raises the error that it ended with."""
    if row.status == CANCELED:
        raise CancelledError(f"request {row.id} was canceled")
    if row.status == FAILED and row.error is not None:
        raise as_raised(row.error)
    return row


def pictures(service: Service, request: Request, body: Generation, row: Row) -> dict[str, Any]:
    """The answer with every picture of a request, as bytes in base64 or as a link."""
    outputs = row.outputs or []
    if body.response_format == "url":
        base = base_url(request)
        data = [{"url": service.url(output["id"], base)} for output in outputs]
    else:
        data = [{"b64_json": file_as_text(output)} for output in outputs]
    told = [
        one | {"revised_prompt": None, "seed": output["seed"]}
        for one, output in zip(data, outputs, strict=True)
    ]
    return {"created": int(time.time()), "data": told, "quality": None, **about(body, row)}


def about(body: Generation, row: Row) -> dict[str, Any]:
    """What is said of the pictures of a request, which are all alike in this."""
    first = (row.outputs or [{}])[0]
    return {
        "output_format": body.output_format,
        "size": f"{first['width']}x{first['height']}",
        "background": "opaque",
        "usage": USAGE,
        "request_id": row.id,
        "model": row.request["model"],
        "lora": first["info"]["adapters"],
    }


def file_as_text(output: dict[str, Any]) -> str:
    """The bytes of an output's file in base64."""
    return base64.b64encode(Path(output["file_path"]).read_bytes()).decode()
