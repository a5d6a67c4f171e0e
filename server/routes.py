"""What every route needs: the service, the keys, and the server's own address."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from .service import Service


def service_of(request: Request) -> Service:
    """The service of the application that was asked."""
    return request.app.state.service


def base_url(request: Request) -> str:
    """How clients reach this server, without a slash at the end."""
    return (service_of(request).settings.base_url or str(request.base_url)).rstrip("/")


def _check_key(request: Request) -> None:
    service_of(request).keys.check(request)


def _check_admin(request: Request) -> None:
    service_of(request).keys.check_admin(request)


KEY, ADMIN = Depends(_check_key), Depends(_check_admin)


class KeyFirstRoute(APIRoute):
    """Asks for the key before a body is read, which FastAPI reads before any dependency."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        checks = [asked.dependency for asked in self.dependencies if asked.dependency]

        async def checked(request: Request) -> Response:
            for check in checks:
                check(request)
            return await handle(request)

        return checked
