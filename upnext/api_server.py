"""Serves an Api: uvicorn's server on a socket that is bound already, driven by us, so that it drains without cutting a request off.

The end of an Api: its listener is closed; every answer from then on says `Connection: close`; connections that are idle stay open for
LINGER_S, for a request may be on its way on each; websockets are closed at once (1012: come back). What still runs after the graceful
timeout is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from upnext.core.spec import ApiSpec
from upnext.engine import secrets
from upnext.engine.requests import CURRENT_REQUEST, route_of
from upnext.engine.worker.lifespan import Lifespan
from upnext.listening import bound_at, listen, resolve

log = logging.getLogger("upnext.api")

LINGER_S = 2.0
KEEP_ALIVE_S = 75
"""Longer than the idle limits of usual proxies, so that they close first and no request meets a connection that is being closed."""
_POLL_S = 0.05
_CANCELLED_S = 1.0
"""What cancelled requests get to end by themselves."""
_CLOSE = (b"connection", b"close")


Seen = Callable[[str, int, float], None]
"""(route as `routes_of` has it, or "other"; status; seconds)"""


def routes_of(app: Any) -> tuple[str, ...]:
    """`METHOD /path/{template}` of each route of a FastAPI or Starlette application; none of another."""
    found: dict[str, None] = {}
    for route in getattr(app, "routes", ()):
        path = getattr(route, "path", None)
        for method in sorted(getattr(route, "methods", None) or ()):
            if isinstance(path, str):
                found[f"{method} {path}"] = None
    return tuple(found)


class _Marked:
    """An application around another one: what is submitted in its requests is marked with their route."""

    def __init__(self, app: Any, api: str) -> None:
        self._app, self._api = app, api

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        CURRENT_REQUEST.set((self._api, scope))  # each request has a task, and so a context, of its own
        await self._app(scope, receive, send)


class _Counted:
    """An application around another one, which sees how each request ends."""

    def __init__(self, app: Any, seen: Seen) -> None:
        self._app, self._seen = app, seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._seen(route_of(scope) or "other", status, time.perf_counter() - begun)


class _Entered:
    """In the place of uvicorn's lifespan: it was entered before."""

    should_exit = False

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    async def startup(self) -> None: ...
    async def shutdown(self) -> None: ...


class ApiServer:
    """One Api in this process. `bound` is its listening socket, which belongs to it from now on."""

    def __init__(self, api: ApiSpec, bound: socket.socket, seen: Seen | None = None) -> None:
        """`seen` is called after each request."""
        self.api = api
        self._bound = bound
        self._lifespan = Lifespan(f"api {api.name!r}", api.lifespan)
        self._config = uvicorn.Config(
            _Marked(api.app if seen is None else _Counted(api.app, seen), api.name),
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(self._config)
        self._ticking: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """All that can fail: secrets and the lifespan. Raises LifespanError (SecretError, too)."""
        if self.api.secrets:
            await asyncio.to_thread(secrets.open_all, self.api.secrets, secrets.Sources.of(os.environ))
        state = await self._lifespan.enter()
        if not self._config.loaded:
            self._config.load()
        self._server.lifespan = _Entered(dict(state or {}))

    async def accept(self) -> None:
        """Take connections from now on."""
        await self._server.startup(sockets=[self._bound])
        self._ticking = asyncio.create_task(self._server.main_loop(), name="upnext-api")

    async def broken(self) -> None:
        """Return once its lifespan was left. Raises LifespanError when that ended by itself."""
        await self._lifespan.broken()

    async def drain(self, limit_s: float | None = None) -> None:
        """Take no more connections, let what runs end, `limit_s` (the Api's graceful timeout) at most, and leave the lifespan."""
        await self._drain(self.api.graceful_timeout_s if limit_s is None else limit_s)
        await self._lifespan.leave()

    async def close(self) -> None:
        """End at once; of no effect after a drain."""
        await self._drain(0.0)
        await self._lifespan.leave(cut=True)

    async def _drain(self, limit_s: float) -> None:
        if self._ticking is None:
            self._bound.close()
            return
        self._stop_accepting()
        idle = _IdleConnections()
        state = self._server.server_state
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + limit_s
        while (state.connections or state.tasks) and (now := loop.time()) < ends_at:
            idle.close_those_over(LINGER_S, list(state.connections), now)
            await asyncio.sleep(min(_POLL_S, ends_at - now))
        await self._cut()
        ticking, self._ticking = self._ticking, None
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)

    def _stop_accepting(self) -> None:
        for server in self._server.servers:
            server.close()
        self._bound.close()
        state = self._server.server_state
        # The ticks make the headers anew from the config.
        self._config.encoded_headers.append(_CLOSE)
        state.default_headers = [*state.default_headers, _CLOSE]
        for connection in list(state.connections):
            cycle = getattr(connection, "cycle", None)
            if _is_websocket(connection):
                connection.shutdown()
            elif cycle is not None and not cycle.response_started:
                cycle.keep_alive = False

    async def _cut(self) -> None:
        state = self._server.server_state
        tasks = list(state.tasks)
        if tasks:
            log.warning("api %r: %d requests did not end in time and are cancelled", self.api.name, len(tasks))
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCELLED_S)
        for connection in list(state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


class _IdleConnections:
    """Since when each connection has nothing to answer."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}

    def close_those_over(self, linger_s: float, connections: Sequence[Any], now: float) -> None:
        for connection in connections:
            if _is_websocket(connection) or not _is_idle(connection):
                self._since.pop(connection, None)
            elif now - self._since.setdefault(connection, now) >= linger_s:
                connection.shutdown()


def _is_websocket(connection: Any) -> bool:
    return not hasattr(connection, "cycle")


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or connection.cycle.response_complete


class ApisHere:
    """The Apis of a service in the process of its workers (`upnext.engine.local.Front`)."""

    def __init__(self, apis: Sequence[ApiSpec]) -> None:
        self._apis = apis
        self._servers: list[ApiServer] = []
        self._accepting = False
        self._stopping = asyncio.Event()
        self._drained = asyncio.Event()
        self.urls: list[str] = []

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until `drain`. Raises ListenError, LifespanError."""
        try:
            await _unless(self._stopping, self._begin())
            if self._accepting:
                on_ready()
                await self._until_broken()
        finally:
            await asyncio.gather(*(server.close() for server in self._servers))
            self._remove_paths()

    async def drain(self) -> None:
        """Let requests end, each Api within its graceful timeout."""
        self._stopping.set()
        if self._accepting:
            await asyncio.gather(*(server.drain() for server in self._servers))
        self._drained.set()

    async def _begin(self) -> None:
        for api in self._apis:
            what = f"api {api.name!r}"
            address = await asyncio.to_thread(resolve, what, api.address)
            bound = listen(what, address)
            self.urls.append(bound_at(bound).url)
            self._servers.append(ApiServer(api, bound))
        for server in self._servers:
            await server.prepare()
        for server in self._servers:
            await server.accept()
        self._accepting = True

    async def _until_broken(self) -> None:
        drained = asyncio.create_task(self._drained.wait(), name="upnext-api-drained")
        watches = [asyncio.create_task(server.broken(), name="upnext-api-watch") for server in self._servers]
        pending = {drained, *watches}
        try:
            while not self._drained.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
        finally:
            for task in (drained, *watches):
                task.cancel()
            await asyncio.gather(drained, *watches, return_exceptions=True)

    def _remove_paths(self) -> None:
        for server in self._servers:
            if server.api.address.path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(server.api.address.path)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do it, and cancel it when `event` is set. Raises what it raises."""
    working = asyncio.create_task(work, name="upnext-api-begin")
    asked = asyncio.create_task(event.wait(), name="upnext-api-asked")
    try:
        await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        asked.cancel()
        await asyncio.gather(working, asked, return_exceptions=True)


@asynccontextmanager
async def asgi_lifespan(app: Any) -> AsyncGenerator[dict[str, Any]]:
    """The lifespan of any ASGI application, by the protocol's messages; one that knows none has none. Raises RuntimeError."""
    life_config = uvicorn.Config(app, lifespan="auto", log_config=None)
    life_config.load()
    life = life_config.lifespan_class(life_config)
    await life.startup()
    if life.should_exit:
        raise RuntimeError("the application's own startup failed; its traceback is in the log")
    try:
        yield dict(life.state)
    finally:
        await life.shutdown()
