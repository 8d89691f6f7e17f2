"""What outlives its job: a thread past its timeout, a coroutine that doesn't heed its cancel. It keeps its permit of max_concurrency.

Its end has been recorded, so it isn't pending any more; the broker counts apart how many there are, and forgets them with this consumer.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from upnext.core.keys import Keys
from upnext.engine.attempt import Attempt
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import lease
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.reconnecting import Link
from upnext.engine.worker.membership import Membership
from upnext.errors import BrokerUnavailableError, QueueError

log = logging.getLogger("upnext.engine")


class Lingering:
    """`link` is the one that ends are sent on, so `begin` reaches the broker before the end that follows it."""

    def __init__(self, link: Link, keys: Keys, membership: Membership) -> None:
        self._link, self._keys, self._membership = link, keys, membership
        self._attempts: set[Attempt] = set()
        self._background = BackgroundTasks("upnext-lingering")
        membership.watch(registered_anew=self.record_again)

    def __bool__(self) -> bool:
        return bool(self._attempts)

    def begin(self, attempt: Attempt) -> None:
        """It is about to be recorded as ended, and goes on."""
        self._attempts.add(attempt)
        self._record(attempt.spec.name)

    def end(self, attempt: Attempt) -> None:
        """It is over now; of no effect for one that never began."""
        if attempt in self._attempts:
            self._attempts.discard(attempt)
            self._record(attempt.spec.name)

    def record_again(self) -> None:
        """After a registration under a new name."""
        for name in {attempt.spec.name for attempt in self._attempts}:
            self._record(name)

    async def aclose(self) -> None:
        await self._background.aclose()

    def _call(self, name: str) -> Any:
        count = sum(attempt.spec.name == name for attempt in self._attempts)
        return lease.linger(self._keys, self._membership.epoch, self._membership.consumer, name, count)

    def _record(self, name: str) -> None:
        wire = self._link.live
        if wire is None:
            self._settle(name)
        else:
            reply = wire.send(*self._call(name).eval())  # its text: a NOSCRIPT would let the end overtake it
            reply.add_done_callback(partial(self._on_reply, name))

    def _on_reply(self, name: str, reply: asyncio.Future[Any]) -> None:
        error = None if reply.cancelled() else reply.exception()
        if isinstance(error, BrokerUnavailableError):
            self._settle(name)
        elif error is not None:
            log.debug("lingering: %s", error)  # another data set, which knows nothing of us

    def _settle(self, name: str) -> None:
        self._background.start(self._until_recorded(name))

    async def _until_recorded(self, name: str) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._link.run(self._call(name))
                return
            except BrokerUnavailableError:
                await backoff.sleep()
            except QueueError as error:
                log.debug("lingering: %s", error)
                return
