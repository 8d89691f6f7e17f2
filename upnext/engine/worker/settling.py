"""A server that was started anew, or another one in its place, may be of an earlier time: what ended here since then ends again."""

from __future__ import annotations

import asyncio
import logging

from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.preflight import server_life
from upnext.engine.redis.reconnecting import Link
from upnext.engine.worker.finisher import Finisher
from upnext.errors import QueueError

log = logging.getLogger("upnext.worker")

SETTLE_S = 1.5
"""After a start of the server: by then every worker that lives is connected again, and has sent what ended there."""


class Settling:
    """`life` names the server's present life; it is set when the worker boots."""

    def __init__(self, link: Link, finisher: Finisher) -> None:
        self._link, self._finisher = link, finisher
        self.life = ""
        self._lock = asyncio.Lock()

    async def settled(self) -> None:
        """Return when this server may be fetched from.

        Ends what ended here since the server's time again, before another worker runs it again; gives other workers time to do the same.
        """
        async with self._lock:
            life = await server_life(self._link)
            if life == self.life:
                return
            count = await self._finisher.finish_again()
            if count:
                log.warning("the broker went back in time: %d job(s) that had ended here were ended again", count)
            await asyncio.sleep(SETTLE_S)
            self.life = life

    async def run(self) -> None:
        """Settle with each new connection: a worker that is too busy to fetch does it, too."""
        backoff = Backoff()
        while True:
            try:
                wire = await self._link.wire()
                await self.settled()
            except QueueError as error:
                log.debug("settling: %s", error)
                await backoff.sleep()
                continue
            backoff.reset()
            await asyncio.wait([wire.closed])
