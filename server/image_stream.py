"""Pictures as they become, as server-sent events of OpenAI's Images API."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from PIL import Image

from ..core.errors import AitkError
from ..pipelines._render import Step
from .errors import body_of
from .image_answers import about, checked, client_is_gone, file_as_text
from .image_bodies import Generation
from .service import Service, Ticket

QUIET = 15.0  # seconds after which something is sent, or proxies would close the connection
STILL_THERE = ": still there\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Stream:
    """The events of one request. kind: image_generation or image_edit."""

    def __init__(self, service: Service, body: Generation, kind: str) -> None:
        self._service, self._body, self._kind = service, body, kind
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[np.ndarray | None] = asyncio.Queue()  # None is the end

    async def answer(self, request: Request, images: list[Any]) -> StreamingResponse:
        """The stream of a request, which is in the queue then. Raises AitkError if it cannot be."""
        on_step = self._on_step if self._body.partial_images else None
        native = self._body.native()
        ticket = await run_in_threadpool(self._service.submit, native, [images], on_step)
        ticket.finished.add_done_callback(lambda _: self._tell(None))
        headers = HEADERS | {"X-Request-Id": ticket.id}
        events = self._events(ticket, request)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    def _on_step(self, step: Step) -> None:
        # in the thread that draws
        if step.index in shown_steps(step.total, self._body.partial_images):
            self._tell(step.preview())

    def _tell(self, preview: np.ndarray | None) -> None:
        with suppress(RuntimeError):  # the server's loop has ended
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, preview)

    async def _events(self, ticket: Ticket, request: Request) -> AsyncIterator[str]:
        gone = asyncio.create_task(client_is_gone(request))
        gone.add_done_callback(lambda _: self._inbox.put_nowait(None))
        number = 0
        try:
            while (preview := await self._next()) is not None:
                yield self._partial(number, preview) if preview.size else STILL_THERE
                number += preview.size > 0
            if ticket.finished.done():
                yield await run_in_threadpool(self._end, ticket)
        finally:
            gone.cancel()
            self._service.queue.cancel(ticket.id)

    async def _next(self) -> np.ndarray | None:
        # an empty picture where none came for a while
        try:
            return await asyncio.wait_for(self._inbox.get(), QUIET)
        except asyncio.TimeoutError:
            return np.empty(0, np.uint8)

    def _partial(self, number: int, preview: np.ndarray) -> str:
        height, width = preview.shape[:2]
        encoded = io.BytesIO()
        Image.fromarray(preview).save(encoded, self._body.output_format)
        return _event(
            f"{self._kind}.partial_image",
            b64_json=base64.b64encode(encoded.getvalue()).decode(),
            partial_image_index=number,
            created_at=int(time.time()),
            output_format=self._body.output_format,
            size=f"{width}x{height}",
            background="opaque",
            quality="auto",
        )

    def _end(self, ticket: Ticket) -> str:
        try:
            row = checked(ticket.finished.result())
        except AitkError as error:
            return _event("error", error=body_of(error)["error"])
        output = (row.outputs or [{}])[0]
        return _event(
            f"{self._kind}.completed",
            b64_json=file_as_text(output),
            created_at=int(time.time()),
            quality="auto",
            seed=output["seed"],
            **about(self._body, row),
        )


def shown_steps(total: int, pictures: int) -> set[int]:
    """The steps, from 1, after which so many pictures are shown, with as much between any two."""
    return {math.ceil(total * number / (pictures + 1)) for number in range(1, pictures + 1)}


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"
