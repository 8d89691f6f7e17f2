"""In front of every page: Host list, cross-site rule, login, headers. An ASGI middleware; the pages behind it see a known user only."""

from __future__ import annotations

import urllib.parse
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upnext.dashboard import requests
from upnext.dashboard.formatting import shown
from upnext.dashboard.logins import Logins

OPEN_PATHS = frozenset({"/healthz", "/login"})
"""Answered without a login."""
OPEN_PREFIX = "/static/"
BODY_CAP_BYTES = 2 << 20


class Guard:
    """Lets a request through with `scope["state"]["user"]` set, or answers it."""

    def __init__(self, app: ASGIApp, logins: Logins, hosts: frozenset[str]) -> None:
        self._app = app
        self._logins = logins
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._judge(scope)
        await (refusal or self._app)(scope, _bounded(receive), _with_headers(send))

    def _judge(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not requests.host_is_ours(headers.get("host"), self._hosts):
            return error(scope, 403, "wrong_host", "this dashboard does not answer to that host name; see --host")
        by_token = requests.bearer(headers) is not None
        if scope["method"] not in requests.SAFE_METHODS and not by_token and not requests.is_same_origin(headers):
            return error(scope, 403, "cross_site", "the request does not come from a page of this dashboard")
        user = self._logins.user_of(headers, Request(scope).cookies.get(self._logins.cookie_name))
        scope.setdefault("state", {})["user"] = user
        path: str = scope["path"]
        if user is not None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return None
        if wants_json(scope) or by_token or scope["method"] not in requests.SAFE_METHODS:
            return error(scope, 401, "login_required", "log in, or send `Authorization: Bearer TOKEN`")
        asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse("/login" + (f"?next={urllib.parse.quote(asked)}" if asked != "/" else ""), 303)


def wants_json(scope: Scope) -> bool:
    """Whether the client asks for JSON in place of a page."""
    accepted = Headers(scope=scope).get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def error(scope: Scope, status: int, code: str, message: str) -> Response:
    """`{error: {code, message}}`, or the message as plain text for a browser."""
    if wants_json(scope) or "authorization" in Headers(scope=scope):
        return JSONResponse({"error": {"code": code, "message": message}}, status)
    return Response(f"{status} {shown(message)}\n", status, media_type="text/plain; charset=utf-8")


def _with_headers(send: Send) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = message.setdefault("headers", [])
            present = {name.lower() for name, _ in headers}
            headers += [(name.encode(), value.encode()) for name, value in requests.HEADERS]
            headers.append((b"vary", b"Cookie, Accept, Authorization"))
            if b"cache-control" not in present:
                headers.append((b"cache-control", b"no-store"))
        await send(message)

    return wrapped


def _bounded(receive: Receive) -> Receive:
    """A body over the cap ends the request as if the client had gone."""
    read = 0

    async def wrapped() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return message if read <= BODY_CAP_BYTES else {"type": "http.disconnect"}

    return wrapped
