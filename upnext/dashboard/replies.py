"""What a handler answers with: a page or JSON, a redirect after an action, or one clear error."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from upnext import errors
from upnext.dashboard.auth import Right, User
from upnext.dashboard.guard import wants_json
from upnext.dashboard.render import Renderer

Handler = Callable[[Request], Awaitable[Response]]


def user_of(request: Request) -> User:
    """The user that the guard let in."""
    user = request.scope["state"]["user"]
    assert isinstance(user, User)
    return user


def demand(request: Request, right: Right) -> None:
    """Raises 403 unless the user's role allows it."""
    if not user_of(request).may(right):
        raise HTTPException(403, f"your role may not do that (it lacks {right.value})")


def answer(
    request: Request,
    renderer: Renderer,
    template: str,
    values: Mapping[str, Any],
    json: Any,
    next_page: str | None = None,
) -> Response:
    """The page, or `json` for a client that asked for it. `next_page` is the address of the next one, a Link header in JSON."""
    if wants_json(request.scope):
        response = as_json(json)
        if next_page:
            response.headers["link"] = f'<{next_page}>; rel="next"'
        return response
    return renderer.page(request, template, {**values, "next": next_page})


def as_json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def done(request: Request, value: Mapping[str, Any], back: str) -> Response:
    """After an action: its result as JSON, or back to the page that it belongs to."""
    if wants_json(request.scope) or "authorization" in request.headers:
        return as_json(dict(value))
    return RedirectResponse(back, 303)


def mapped(handler: Handler) -> Handler:
    """Turn our errors into HTTP's: unknown 404, unfit 400, the broker away 503."""

    @functools.wraps(handler)
    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except errors.JobNotFoundError as error:
            raise HTTPException(404, str(error)) from None
        except errors.UsageError as error:
            raise HTTPException(400, str(error)) from None
        except (errors.NoBrokerError, errors.QueueError) as error:
            raise HTTPException(503, f"the broker does not answer: {error}") from None
        except (errors.DaemonNotRunningError, errors.ControlError) as error:
            raise HTTPException(409, str(error)) from None

    return wrapped


def quoted(text: str) -> str:
    """One segment of a path."""
    return urllib.parse.quote(text, safe="")
