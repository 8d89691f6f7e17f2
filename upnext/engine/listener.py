"""The subscription of a client: one connection for wake-ups (replies to waiters, the bell). A hint only; the truth is in the keys.

Channels are sharded: on a cluster a word passes through the node that has our slot and its replicas, not through all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from upnext.engine.endpoint import Endpoint
from upnext.engine.link import Backoff, Link
from upnext.engine.wire import Wire
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.engine")

PING_S = 8.0
SILENT_S = 18.0


class Listener:
    """`heard(channel, data)` gets each delivery; `reconnected()` runs whenever deliveries may have been missed: reread the truth."""

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        channels: list[str],
        heard: Callable[[str, bytes], None],
        reconnected: Callable[[], None],
    ) -> None:
        self._channels, self._heard, self._reconnected = channels, heard, reconnected
        self._link = Link(endpoint, name, on_push=self._push, on_connect=self._subscribe)
        self._subscribed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the subscription stands; from then on it keeps itself up. Raises BrokerUnavailableError."""
        if self._task is None:
            await self._link.wire()
            if self._task is None:
                self._task = asyncio.create_task(self._keep(), name="upnext-listener")

    @property
    def up(self) -> bool:
        return self._link.live is not None

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._link.aclose()

    async def _keep(self) -> None:
        backoff = Backoff()
        wire = self._link.live
        while True:
            if wire is not None:
                await self._watch(wire)
            try:
                wire = await self._link.wire()
                backoff.reset()
                self._reconnected()
            except BrokerUnavailableError as error:
                log.debug("listener: %s", error)
                await backoff.sleep()

    @staticmethod
    async def _watch(wire: Wire) -> None:
        """Returns when the connection is gone. Nothing is owed on it, so one that went silent would be trusted for ever: it is asked."""
        while not wire.closed.done():
            await asyncio.wait([wire.closed], timeout=PING_S)
            if wire.closed.done():
                return
            if wire.silent_s > SILENT_S:
                wire.abort()
                return
            if wire.silent_s >= PING_S / 2:
                wire.post("PING")

    async def _subscribe(self, wire: Wire) -> None:
        self._subscribed = asyncio.get_running_loop().create_future()
        wire.post("SSUBSCRIBE", *self._channels)
        try:
            async with asyncio.timeout(5):
                await self._subscribed
        except TimeoutError:
            raise BrokerUnavailableError("the subscription was not confirmed within 5 s") from None

    def _push(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            if self._subscribed is not None and not self._subscribed.done():
                self._subscribed.set_exception(reply)
            return
        kind, channel, data, *_ = *reply, None
        if kind == b"smessage":
            self._heard(channel.decode(), data)
        elif kind == b"ssubscribe" and isinstance(data, int) and data >= len(self._channels):
            self._confirmed()
        elif kind == b"sunsubscribe" and (wire := self._link.live) is not None:
            wire.close()  # the slot has moved to another node, and the subscription has to follow it

    def _confirmed(self) -> None:
        if self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(None)
