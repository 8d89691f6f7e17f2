"""The connection over which a worker is given jobs, and the read on it that waits for one."""

from __future__ import annotations

import asyncio
from typing import Any

from upnext.core.keys import GROUP
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.redis.connection import Wire
from upnext.engine.worker.membership import Membership

BLOCK_MS = 2000
UNBLOCK_AGAIN_S = 0.05


class FetchConnection:
    """Reads on it go to the broker only while the consumer's record names it: a reaper cuts it then, and nothing arrives late."""

    def __init__(self, broker: QueueClient, membership: Membership) -> None:
        self._broker, self._membership = broker, membership
        self.link = broker.link.another("upnext-fetch", patient=True)
        self._recorded: tuple[str, int] = ("", 0)
        """Consumer and connection, as the consumer's record has them."""
        self.blocked: asyncio.Future[Any] | None = None
        """The read that waits."""
        self._blocked_on: Wire | None = None

    async def connect(self) -> None:
        self._membership.client_id = (await self.link.wire()).client_id

    async def wire(self) -> Wire:
        while True:
            wire = await self.link.wire()
            known = (self._membership.consumer, wire.client_id)
            if known == self._recorded:
                return wire
            await self._membership.record_connection(wire.client_id)
            self._recorded = known

    async def read(self, stream: str, most: int) -> list[Any]:
        """Take up to `most` jobs of one stream, without waiting. -> its entries"""
        wire = await self.wire()
        reply = await wire.send(
            "XREADGROUP", "GROUP", GROUP, self._membership.consumer, "COUNT", most, "STREAMS", stream, ">"
        )
        return reply[0][1] if reply else []

    async def block(self, streams: list[str]) -> None:
        """Begin the read that the broker answers when one of the streams has a job."""
        wire = self._blocked_on = await self.wire()
        words = ("STREAMS", *streams, *[">"] * len(streams))
        self.blocked = wire.send(
            "XREADGROUP", "GROUP", GROUP, self._membership.consumer, "COUNT", 1, "BLOCK", BLOCK_MS, *words
        )
        wire.flush()

    async def unblock(self) -> None:
        """End the waiting read; it is done then, and what it had got counts."""
        blocked = self.blocked
        assert blocked is not None
        assert self._blocked_on is not None
        while not blocked.done():
            await self._broker.link.command("CLIENT", "UNBLOCK", self._blocked_on.client_id)
            # the two connections race: a read that arrives after the command goes on waiting
            await asyncio.wait([blocked], timeout=UNBLOCK_AGAIN_S)

    def reply(self) -> Any:
        """What the waiting read, which is done, has got: [] for nothing. Raises what it raised."""
        blocked, self.blocked = self.blocked, None
        assert blocked is not None
        return blocked.result()

    def forget(self) -> bool:
        """Give the waiting read up after an error. -> whether its reply was still to come.

        Such a reply can't be distinguished from a lost one, so the connection goes.
        """
        blocked, self.blocked = self.blocked, None
        if blocked is None:
            return False
        if not blocked.done() and self._blocked_on is not None:
            self._blocked_on.abort()
            return True
        if blocked.done() and not blocked.cancelled():
            blocked.exception()
        return False

    async def end(self) -> None:
        """Make sure that the broker feeds this consumer no more."""
        if (wire := self.link.live) is not None:
            await wire.send("PING")  # answered in order: no read is on its way behind the consumer's removal

    async def aclose(self) -> None:
        await self.link.aclose()
