"""Turns values into pages: Jinja2 with autoescape, an ETag over what is shown, nothing cached by others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jinja2
from starlette.requests import Request
from starlette.responses import Response

from upnext.dashboard import formatting, sparklines
from upnext.dashboard.auth import Right, User

_HERE = Path(__file__).parent

SECTIONS = (
    ("/", "Overview"),
    ("/hosts", "Hosts"),
    ("/workers", "Workers"),
    ("/tasks", "Tasks"),
    ("/jobs", "Jobs"),
    ("/crons", "Crons"),
    ("/events", "Events"),
    ("/dead", "Dead letters"),
    ("/limits", "Limits"),
    ("/apis", "Apis"),
    ("/activity", "Activity"),
)
"""The navigation: address and name of each section."""


class Renderer:
    """Templates of this package, with the filters of `formatting`. `title`: what the pages are headed with."""

    def __init__(self, title: str) -> None:
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        cast("dict[str, Any]", self._env.filters).update(formatting.FILTERS)  # pyright: ignore[reportUnknownMemberType]
        cast("dict[str, Any]", self._env.globals).update(  # pyright: ignore[reportUnknownMemberType]
            sparkline=sparklines.sparkline, Right=Right, static=_static_urls(), title=title, sections=SECTIONS
        )

    def page(self, request: Request, template: str, values: Mapping[str, Any], *, status: int = 200) -> Response:
        """Render for the user of this request. Answers 304 where the client has the same page already."""
        user: User | None = request.scope.get("state", {}).get("user")
        text = self._env.get_template(template).render(**values, user=user, path=request.url.path)
        body = text.encode("utf-8", "replace")
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"etag": etag, "cache-control": "private, no-cache, no-store"}
        if status == 200 and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, status, headers, "text/html; charset=utf-8")


def _static_urls() -> dict[str, str]:
    """Name -> address with the content's hash, so that a browser may keep a file for good."""
    return {
        path.name: f"/static/{path.name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        for path in (_HERE / "static").iterdir()
        if path.is_file()
    }
