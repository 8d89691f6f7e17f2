"""Writes down what each task's counters and depths are, every minute: by the scheduler that leads, for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from upnext.core import series
from upnext.core.keys import Keys
from upnext.engine.calls import series as calls
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import EpochError, ReplyError
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.scheduler")

_MINUTE_S = 60.0
LATE_S = 0.2
"""So long after a minute has begun it is sampled, so that clocks that differ a little name the same one."""


class Sampling:
    """`leads()`: whether this scheduler leads; `now_ms()`: the server's clock."""

    def __init__(
        self, link: Link, keys: Keys, epoch: Callable[[], str], leads: Callable[[], bool], now_ms: Callable[[], int]
    ) -> None:
        self._link, self._keys, self._epoch, self._leads, self._now_ms = link, keys, epoch, leads, now_ms

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(_MINUTE_S - self._now_ms() / 1000 % _MINUTE_S + LATE_S)
            if self._leads() and self._epoch():
                try:
                    await self.once(self._now_ms())
                except EpochError as error:
                    log.debug("sampling the tasks: %s", error)  # the next beat learns the epoch
                except (BrokerUnavailableError, ReplyError) as error:
                    log.warning("sampling the tasks: %s", error)

    async def once(self, now_ms: int) -> None:
        """Write down the minute that this moment is in, and the quarter of an hour that began with it. Raises what a call raises."""
        minute = series.at(now_ms, series.FINE)
        for step in (series.FINE, series.COARSE):
            if minute % step == 0:
                cursor = "0"
                while True:
                    cursor = await self._link.run(calls.sample(self._keys, self._epoch(), minute, step, cursor))
                    if cursor == "0":
                        break
