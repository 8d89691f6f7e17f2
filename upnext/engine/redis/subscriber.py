"""The subscription of a client: one connection for wake-ups (replies to waiters, the bell). A hint only; the truth is in the keys.

Channels are sharded: on a cluster a word passes through the node that has our slot and its replicas, not through all of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from upnext.core.keys import Keys
from upnext.engine.contexts import shared_task
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.connection import Wire
from upnext.engine.redis.reconnecting import Link
from upnext.errors import BrokerUnavailableError, QueueError

log = logging.getLogger("upnext.engine")

PROVE_S = 4.0
"""So often a subscriber publishes to itself."""
DEAF_S = 2.0
"""A word to oneself that does not come back within this, though the broker took it, means that others' don't come, either."""


class Listener:
    """`on_message(channel, data)` gets each delivery; `reconnected()` runs when deliveries may have been missed.

    `over` is the client's link for commands: words that prove delivery are published over it.
    """

    def __init__(
        self,
        over: Link,
        name: str,
        keys: Keys,
        channels: list[str],
        on_message: Callable[[str, bytes], None],
        reconnected: Callable[[], None],
    ) -> None:
        self._over = over
        self._own_channel = keys.ear(secrets.token_hex(8))
        self._channels, self._on_message, self._reconnected = [self._own_channel, *channels], on_message, reconnected
        self._link = over.another(name, on_push=self._push, on_connect=self._subscribe, patient=True)
        self._proof: asyncio.Future[None] | None = None
        self._subscribed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the subscription stands; from then on it keeps itself up. Raises BrokerUnavailableError."""
        if self._task is None:
            await self._link.wire()
            if self._task is None:
                self._task = shared_task(self._keep(), "upnext-listener")

    @property
    def started(self) -> bool:
        """Whether `start` has returned once."""
        return self._task is not None

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

    async def _watch(self, wire: Wire) -> None:
        """Return when the connection is gone, or brings nothing though the broker takes what is published."""
        while True:
            await asyncio.wait([wire.closed], timeout=PROVE_S)
            if wire.closed.done():
                return
            if not await self._delivers(wire):
                if not wire.closed.done():
                    log.warning("the subscription at the broker brings nothing: made anew")
                    wire.abort()
                return

    async def _delivers(self, wire: Wire) -> bool:
        """Whether a word to oneself comes back. True as well when the broker refuses to take one: that proves nothing."""
        self._proof = asyncio.get_running_loop().create_future()
        for _ in range(2):  # the first may only have found that the other connection is cut
            try:
                await self._over.command("SPUBLISH", self._own_channel, b"")
            except BrokerUnavailableError as error:
                log.debug("proving delivery: %s", error)
            except QueueError as error:
                log.debug("proving delivery: %s", error)
                return True
            else:
                await asyncio.wait([self._proof, wire.closed], timeout=DEAF_S, return_when=asyncio.FIRST_COMPLETED)
                break
        return self._proof.done()

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
            if channel.decode() == self._own_channel:
                self._prove()
                return
            self._on_message(channel.decode(), data)
        elif kind == b"ssubscribe" and isinstance(data, int) and data >= len(self._channels):
            self._confirmed()
        elif kind == b"sunsubscribe" and (wire := self._link.live) is not None:
            wire.close()  # the slot has moved to another node, and the subscription has to follow it

    def _confirmed(self) -> None:
        if self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(None)

    def _prove(self) -> None:
        if self._proof is not None and not self._proof.done():
            self._proof.set_result(None)
