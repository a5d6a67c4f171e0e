"""The asynchronous API: a request is taken at once, drawn in its turn, and asked after."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from .answers import ListAnswer, ResultAnswer, StatusAnswer, described
from .pictures import read_pictures
from .routes import KEY, KeyFirstRoute, base_url, service_of
from .schemas import InferenceRequest
from .service import Service
from .store import FINISHED, STATUSES, SUCCEEDED, Row

router = APIRouter(route_class=KeyFirstRoute, tags=["requests"])


@router.post("/v1/inference", dependencies=[KEY], responses=described(StatusAnswer))
async def submit(body: InferenceRequest, request: Request, response: Response) -> dict[str, Any]:
    """Takes a request for samples of one model.

    Everything that can be wrong without reading weights is refused here; what fails later is told
    by the request's status.
    """
    service = service_of(request)
    pictures = await run_in_threadpool(read_pictures, body, service.settings)
    ticket = await run_in_threadpool(service.submit, body, pictures)
    response.headers["X-Request-Id"] = ticket.id
    return _status(service, service.row(ticket.id), base_url(request))


@router.get("/v1/requests", dependencies=[KEY], responses=described(ListAnswer))
def list_requests(
    request: Request,
    status: Literal[STATUSES] | None = None,  # type: ignore[valid-type]
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> dict[str, Any]:
    """Requests, newest first; `after` is the id of the last one of the page before."""
    service = service_of(request)
    if after:
        service.row(after)
    rows = service.store.newest(status, limit + 1, after)
    page = [_status(service, row, base_url(request)) for row in rows[:limit]]
    return {"requests": page, "has_more": len(rows) > limit}


@router.get("/v1/requests/{id}/status", dependencies=[KEY], responses=described(StatusAnswer))
def status(id: str, request: Request) -> dict[str, Any]:
    """How a request stands, with its place in the queue or its progress."""
    service = service_of(request)
    return _status(service, service.row(id), base_url(request))


@router.get("/v1/requests/{id}/result", dependencies=[KEY], responses=described(ResultAnswer))
def result(id: str, request: Request) -> dict[str, Any]:
    """What was drawn so far, with links to the files and all that decided them."""
    service, base = service_of(request), base_url(request)
    row = service.row(id)
    said = _status(service, row, base)
    outputs = None if row.outputs is None else [_output(service, one, base) for one in row.outputs]
    done = row.status == SUCCEEDED
    return said | {"outputs": outputs if done else outputs or None, "metadata": row.request}


@router.post("/v1/requests/{id}/cancel", dependencies=[KEY], responses=described(StatusAnswer))
def cancel(id: str, request: Request) -> dict[str, Any]:
    """Takes a request out of the queue, or stops it within a step; a finished one stays."""
    service = service_of(request)
    service.row(id)
    service.queue.cancel(id)
    return _status(service, service.row(id), base_url(request))


@router.get("/v1/files/{name}/content", response_class=FileResponse)
def content(
    name: str, request: Request, expires: int | None = None, signature: str = ""
) -> FileResponse:
    """A picture or clip as it was written, byte for byte; by its link, or with a key."""
    service = service_of(request)
    if expires is not None:
        service.links.check(name, expires, signature)
    else:
        service.keys.check(request)
    path = service.file(name)
    return FileResponse(path, filename=path.name, content_disposition_type="inline")


def _status(service: Service, row: Row, base: str) -> dict[str, Any]:
    place = {"position": service.queue.position(row.id), "progress": service.queue.progress(row.id)}
    return {
        "request_id": row.id,
        "status": row.status,
        "model": row.request["model"],
        "status_url": f"{base}/v1/requests/{row.id}/status",
        "result_url": f"{base}/v1/requests/{row.id}/result",
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "error": row.error,
        **({} if row.status in FINISHED else place),
    }


def _output(service: Service, output: dict[str, Any], base: str) -> dict[str, Any]:
    return output | {"url": service.url(output["id"], base)}
