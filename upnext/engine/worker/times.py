"""Keeps how long attempts waited and ran, and adds that to the task's times in the broker once in a while.

Of each request of ends one attempt a task is looked at, and of a task no more than one within APART_MS, with the weight of those that were
not: a busy worker ends thousands a second. What a worker that dies has not sent is lost; nothing counts twice.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from itertools import islice

from upnext.core.keys import Keys
from upnext.core.series import Times
from upnext.engine.background import BackgroundTasks
from upnext.engine.calls import series as calls
from upnext.engine.calls.worker import Finish
from upnext.engine.contexts import none_of_a_job
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.engine.worker.membership import Membership
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.engine")

SEND_S = 15.0
APART_MS = 20
_STEPPED_MS = 1_000
"""A clock that was set back by more holds nothing up."""
LAST_S = 0.5
"""So long a worker that stops waits for its last times to be written."""


_PLAIN = re.compile(rb'"b":(\d+),"f":(\d+),"w":"[^"]*"}\Z')
_TAIL_BYTES = 200


def _ran(outcome: bytes) -> tuple[int, int] | None:
    """From when to when it ran, as the outcome of a plain job ends; None for another one."""
    found = _PLAIN.search(outcome[-_TAIL_BYTES:])
    return (int(found[1]), int(found[2])) if found is not None else None


class TimesKept:
    """One worker's."""

    def __init__(self, link: Link, keys: Keys, membership: Membership) -> None:
        self._link, self._keys, self._membership = link, keys, membership
        self._noted: dict[str, Times] = {}
        self._passed: dict[str, list[int]] = {}
        """Task -> when (ms) the next attempt of it is looked at, and how many ended meanwhile."""
        self._timer: asyncio.TimerHandle | None = None
        self._background = BackgroundTasks("upnext-times")

    def note(self, ends: Sequence[Finish], count: int) -> None:
        """Look at some ends of a request that has `count` of them."""
        last = {end.task: end for end in ends}
        weight = max(1, count // max(1, len(last)))
        for task, end in last.items():
            ran = end.ran or _ran(end.outcome)
            if ran is None:
                continue
            passed = self._passed.get(task)
            if passed is not None:
                if 0 < passed[0] - ran[1] < _STEPPED_MS:
                    passed[1] += weight
                    continue
                counts = weight + passed[1]
                passed[0], passed[1] = ran[1] + APART_MS, 0
            else:
                counts, self._passed[task] = weight, [ran[1] + APART_MS, 0]
            begun_ms, ended_ms = ran
            queued_ms = int(end.entry_id.partition(b"-")[0]) - self._membership.server_offset_s * 1000
            times = self._noted.get(task)
            if times is None:
                times = self._noted[task] = Times()
            times.note((begun_ms - queued_ms) / 1000, (ended_ms - begun_ms) / 1000, counts)
        if self._timer is None and self._noted:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SEND_S, self._due, context=none_of_a_job())

    def _due(self) -> None:
        self._timer = None
        self._background.start(self._send())

    async def _send(self) -> None:
        noted, self._noted = self._noted, {}
        rows = iter(noted.items())
        now_ms = time.time_ns() // 1_000_000 + round(self._membership.server_offset_s * 1000)
        try:
            while part := dict(islice(rows, calls.MOST_NOTED)):
                await self._link.run(calls.note_times(self._keys, now_ms, part))
        except (BrokerUnavailableError, ReplyError) as error:
            log.debug("times of %d task(s) are not kept: %s", len(noted), error)  # a repeat could count them twice

    async def aclose(self) -> None:
        """Send the rest, if the broker answers soon."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._noted and self._link.live is not None:
            try:
                async with asyncio.timeout(LAST_S):
                    await self._send()
            except TimeoutError:
                log.debug("the last times are not kept: the broker does not answer")
        await self._background.aclose()
