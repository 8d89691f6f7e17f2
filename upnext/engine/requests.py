"""The HTTP request that the calling code answers: what it submits is marked with the request's route."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from upnext.core import own_options

_Scope = tuple[str, Mapping[str, Any]]

CURRENT_REQUEST: contextvars.ContextVar[_Scope] = contextvars.ContextVar("upnext_request")
"""(name of the Api, the scope of ASGI, in which the application notes its route as soon as it has found it)"""


def route_of(scope: Mapping[str, Any]) -> str | None:
    """`METHOD /path/{template}`; None for a request without a route, or of a framework that notes none."""
    path = getattr(scope.get("route"), "path", None)
    return f"{_method(scope)} {path}" if isinstance(path, str) else None


def marked(own: dict[str, Any] | None, request: _Scope) -> dict[str, Any]:
    """What a job submitted in this request has of its own: `own`, and the route. Never the path, which may hold what is a secret."""
    api, scope = request
    return own_options.with_via(own, route_of(scope) or f"{_method(scope)} to {api}")


def _method(scope: Mapping[str, Any]) -> str:
    return str(scope.get("method") or str(scope.get("type", "")).upper())
