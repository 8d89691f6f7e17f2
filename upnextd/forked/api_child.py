"""A process of an Api: it prepares everything, takes connections when it is ordered to, and drains."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from upnext.control.exits import ExitCode
from upnext.engine import secrets
from upnext.errors import LifespanError
from upnextd.forked.body import Body
from upnextd.shared import messages
from upnextd.shared.messages import Assignment, Message
from upnextd.shared.scoreboard import Writer


class ApiChild(Body):
    """Serves one Api. Started paused, it prepares everything and takes connections once it is resumed."""

    def __init__(
        self,
        assignment: Assignment,
        page: Writer,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        server: Any,
    ) -> None:
        """`server` is an `upnext.api_server.ApiServer`."""
        super().__init__(assignment, page, connection, loop)
        self._server = server
        self._may_accept = asyncio.Event()
        self._prepared = False
        self._life: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def main(self) -> int:
        """Until it was ordered to end, or can't go on. -> exit code."""
        self.watch_signals()
        beating = self.must(self.beat())
        if not self.assignment.paused:
            self._may_accept.set()
        self._life = self.own(self._serve())
        ended = self.own(self._ended.wait())
        await asyncio.wait([self._life, ended], return_when=asyncio.FIRST_COMPLETED)
        error = self._life.exception() if self._life.done() and not self._life.cancelled() else None
        if error is None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            code = ExitCode.OK
        elif not self._prepared or isinstance(error, LifespanError):
            code = self.boot_failed(error)
        else:
            logging.getLogger("upnextd").critical("the api failed", exc_info=error)
            code = ExitCode.FAILED
        await self._server.close()
        beating.cancel()
        return code

    async def _serve(self) -> None:
        await self._server.prepare()
        self._prepared = True
        if not self.assignment.paused:
            await self._server.accept()
        read = tuple(messages.SecretRead(name=name, source=source) for name, source in secrets.shown())
        self.channel.send(messages.Ready(paused=self.assignment.paused, secrets=read))
        if self.assignment.paused:
            await self._may_accept.wait()
            await self._server.accept()
        await self._server.broken()

    def on_message(self, message: Message) -> None:
        match message:
            case messages.Resume():
                self._may_accept.set()
            case messages.Stop():
                self.ask_stop(message.grace_s)
            case _:
                return

    def ask_stop(self, grace_s: float) -> None:
        if self.stopping:
            return
        self.stopping = True
        if not self._prepared:
            self._ended.set()
            return
        self.must(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        await self._server.drain(min(grace_s, self._server.api.graceful_timeout_s))
        self.channel.send(messages.Stopped(abandoned=()))
        self._ended.set()
