"""The application: its routes, and how it starts and stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from . import about, access, errors, images, loras, native, verify
from .service import Service
from .settings import Settings

DESCRIPTION = "Renders, byte for byte, the samples that ostris/ai-toolkit renders from a LoRA."


def create_app(settings: Settings) -> FastAPI:
    """The application of a server. Raises AitkError for settings it cannot work with."""
    service = Service(settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="AI Toolkit Inference", description=DESCRIPTION, lifespan=life)
    app.state.service = service
    errors.install(app)
    app.add_middleware(access.BodyLimit, most=settings.max_body_mb * 2**20)
    for module in (native, images, loras, verify, about):
        app.include_router(module.router, responses=errors.RESPONSES)
    return app
