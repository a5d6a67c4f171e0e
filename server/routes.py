"""What every route needs: the service, the keys, and the server's own address."""

from __future__ import annotations

from fastapi import Depends, Request

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
