"""Serves a dashboard: uvicorn on a socket that we bind, with bounds that uvicorn lacks."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
from collections.abc import Generator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from upnext.address import Address
from upnext.dashboard.settings import DashboardSettings
from upnext.errors import UsageError
from upnext.listening import bind_path

log = logging.getLogger("upnext.dashboard")

MAX_CONNECTIONS = 64
HEADERS_WITHIN_S = 10.0
STOP_WITHIN_S = 5


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with at most MAX_CONNECTIONS at once, each with HEADERS_WITHIN_S for the headers of a request."""

    _headers_by: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse what is too many: a full house must not cost the pages that are open."""
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a further request; stop it when the headers are whole."""
        if self.transport.is_closing():
            return
        if self._headers_by is None and not self._answering():
            self._wait_for_headers()
        super().data_received(data)
        if self._answering():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._stop_waiting()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self in self.connections:
            super().connection_lost(exc)

    def _answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait_for_headers(self) -> None:
        self._headers_by = self.loop.call_later(HEADERS_WITHIN_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._headers_by is not None:
            self._headers_by.cancel()
            self._headers_by = None


def bind(listen: Address, group: str | None = None) -> socket.socket:
    """A listening socket. A Unix socket is 0600, or 0660 for a named group. Raises UsageError, and OSError when the address is taken."""
    if listen.path is None:
        return _bind_tcp(listen)
    try:
        bound = bind_path(listen.path)
    except FileExistsError:
        raise UsageError(f"dashboard socket {listen}: a file that is not a socket is in the way") from None
    try:
        if group is not None:
            os.chown(listen.path, -1, _group_id(group))
            os.chmod(listen.path, 0o660)
        bound.listen(128)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_tcp(listen: Address) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"dashboard address {listen}: {error.strerror}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except BaseException:
        bound.close()
        raise
    return bound


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"no group {group!r} on this machine") from None


class _Server(uvicorn.Server):
    """Leaves signals to the program around it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(settings: DashboardSettings, app: Any, stopped: asyncio.Event, ready: str) -> None:
    """Serve `app` until `stopped` is set; `ready` is logged once it listens. Raises UsageError and OSError when it can't listen."""
    bound = bind(settings.listen, settings.group)
    log.info(ready)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        h11_max_incomplete_event_size=32 << 10,
    )
    server = _Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[bound]))
    try:
        stopping = asyncio.get_running_loop().create_task(stopped.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
    finally:
        server.should_exit = True
        await serving
        bound.close()
        if settings.listen.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(settings.listen.path)
