"""The dashboard as an ASGI application: the guard, then the routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from upnext.dashboard.guard import Guard, error
from upnext.dashboard.login_pages import LoginPages
from upnext.dashboard.logins import Logins
from upnext.dashboard.render import Renderer
from upnext.dashboard.settings import DashboardSettings

_STATIC = Path(__file__).parent / "static"


class _KeptFiles(StaticFiles):
    """Files whose address changes with their content: a browser may keep them for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "private, max-age=31536000, immutable"
        return response


def build(settings: DashboardSettings, logins: Logins, renderer: Renderer, pages: Sequence[BaseRoute]) -> ASGIApp:
    """The whole: `pages` are the routes behind the login."""
    people = LoginPages(logins, renderer)
    inner = Starlette(
        routes=[
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/login", people.show, methods=["GET"]),
            Route("/login", people.log_in, methods=["POST"]),
            Route("/logout", people.log_out, methods=["POST"]),
            *pages,
        ],
        exception_handlers={HTTPException: _http_error},
    )
    inner.mount("/static", _KeptFiles(directory=_STATIC))
    return Guard(inner, logins, settings.host_list)


async def _healthz(request: Request) -> Response:  # noqa: ARG001 - starlette's signature
    return PlainTextResponse("ok\n")


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 403: "forbidden", 409: "conflict"}
    return error(request.scope, exc.status_code, codes.get(exc.status_code, "refused"), str(exc.detail))
