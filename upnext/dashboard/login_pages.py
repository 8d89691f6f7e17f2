"""`/login`, `/logout`: a name and a password, the token, or a one-time link in exchange for a session's cookie."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from upnext.dashboard import auth
from upnext.dashboard.logins import Logins
from upnext.dashboard.render import Renderer

log = logging.getLogger("upnext.dashboard")

FAILURE_PAUSE_S = 0.5
"""A wrong login is answered so much later; one login is checked at a time."""


class LoginPages:
    """The pages that are open to everybody. They say nothing about the queue."""

    def __init__(self, logins: Logins, renderer: Renderer) -> None:
        self._logins = logins
        self._renderer = renderer
        self._one_at_a_time = asyncio.Lock()

    async def show(self, request: Request) -> Response:
        """GET /login: the form. A link's ticket stands in the address and is sent by POST only."""
        return self._form(request, ticket=request.query_params.get("ticket", ""))

    async def log_in(self, request: Request) -> Response:
        """POST /login: -> the page that was asked for, with the cookie set; or the form again."""
        fields = await read_form(request)
        async with self._one_at_a_time:
            cookie = await self._cookie(fields)
            if cookie is None:
                log.warning(
                    "a login was refused (from %s)", request.client.host if request.client else "a local socket"
                )
                await asyncio.sleep(FAILURE_PAUSE_S)
                return self._form(request, wrong=True, status=401)
        response = RedirectResponse(_local_path(fields.get("next", "/")), 303)
        response.set_cookie(
            self._logins.cookie_name,
            cookie,
            max_age=auth.SESSION_LIFE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def log_out(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        """POST /logout: forget the cookie."""
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._logins.cookie_name)
        return response

    async def _cookie(self, fields: dict[str, str]) -> str | None:
        if fields.get("ticket"):
            return self._logins.by_link(fields["ticket"])
        if self._logins.takes_passwords:
            return await asyncio.to_thread(self._logins.by_password, fields.get("name", ""), fields.get("password", ""))
        return self._logins.by_token(fields.get("token", "").strip())

    def _form(self, request: Request, *, ticket: str = "", wrong: bool = False, status: int = 200) -> Response:
        return self._renderer.page(
            request,
            "login.html",
            {
                "ticket": ticket,
                "wrong": wrong,
                "passwords": self._logins.takes_passwords,
                "next": _local_path(request.query_params.get("next", "/")),
            },
            status=status,
        )


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a urlencoded form; the last of one name wins. A broken body has none."""
    try:
        body = await request.body()
    except ClientDisconnect:
        return {}
    return dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=5000))


def _local_path(path: str) -> str:
    """Only a path of ours: `//host` and `/\\host` lead elsewhere."""
    fine = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if fine else "/"
