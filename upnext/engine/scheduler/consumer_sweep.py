"""Looks through the groups of all known tasks for consumers without lease and record, so that no entry stays with one for ever.

A consumer is made known before its first read and removed in the script that saw nothing pending. One that is in a group without a lease or
a grave was created anew by a read that arrived too late, or is what a data set that went back in time left behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from upnext.core.keys import Keys
from upnext.engine.calls import lease
from upnext.engine.calls.rows import names
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import EpochError, ReplyError
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.scheduler")

SWEEP_S = 15.0
STREAMS = 100
"""Most streams that one call looks at."""
MOST_CONSUMERS = 1000
"""After so many consumers a call looks at no further stream."""


class ConsumerSweep:
    """`leads()`: whether this scheduler leads, one sweeps for all; `found(consumer, tasks)` is called for each of them."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        epoch: Callable[[], str],
        leads: Callable[[], bool],
        found: Callable[[str, Iterable[str]], None],
    ) -> None:
        self._link, self._keys, self._epoch = link, keys, epoch
        self._leads, self._found = leads, found

    async def run(self) -> None:
        while True:
            if self._leads() and self._epoch():
                try:
                    await self.once()
                except EpochError as error:
                    log.debug("looking for consumers without a lease: %s", error)  # the next beat learns the epoch
                except (BrokerUnavailableError, ReplyError) as error:
                    log.warning("looking for consumers without a lease: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def once(self) -> None:
        tasks = names(await self._link.command("HKEYS", self._keys.tasks), self._keys.tasks)
        streams = [(stream, task) for task in sorted(tasks) for stream in self._keys.streams(task)]
        unowned: dict[str, dict[str, None]] = {}
        while streams:
            part = streams[:STREAMS]
            looked = await self._link.run(
                lease.unowned_consumers(self._keys, self._epoch(), [stream for stream, _ in part], MOST_CONSUMERS)
            )
            for index, consumer in looked.consumers:
                unowned.setdefault(consumer, {})[part[index][1]] = None
            streams = streams[looked.looked_at :]
        for consumer, tasks in unowned.items():
            self._found(consumer, tasks)
