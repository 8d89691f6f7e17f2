"""Writes what a daemon's processes do where all who look at the queue find it: once a minute, at a change, and while they look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from upnext.core import activity, reports
from upnext.core.keys import Keys
from upnext.engine.calls import daemons
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import ReplyError
from upnext.errors import BrokerUnavailableError

log = logging.getLogger("upnext.scheduler")

SETTLING_S = 10.0
"""For so long after a change every beat reports: a new process is ready a little later."""
APART_S = 0.5
"""Reports are not closer than that, however fast processes die."""

Ask = Callable[[], Awaitable[Mapping[str, Any] | None]]


class Reports:
    """One daemon's. `ask` answers what its `status` is, or None when that is not known now; `daemon` is its id."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        epoch: Callable[[], str],
        daemon: Callable[[], str],
        host: str,
        token: str,
        *,
        returns: bool,
    ) -> None:
        self._link, self._keys, self._epoch = link, keys, epoch
        self._daemon, self._host, self._token = daemon, host, token
        self._kept_s = reports.KEPT_S if returns else reports.KEPT_PASSING_S
        self.ask: Ask | None = None
        """To be set before `run`; without it nothing is reported."""
        self._due = asyncio.Event()
        self._settled_at = 0.0
        self._noted = (0, 0)
        """Life of the daemon and number of its newest event that was written."""

    def changed(self) -> None:
        """A process was born or died: report now, and with the beats that follow."""
        self._settled_at = asyncio.get_running_loop().time() + SETTLING_S
        self._due.set()

    def look(self) -> None:
        """Someone looks: report now."""
        self._due.set()

    def beat(self, *, watched: bool) -> None:
        """A beat has passed."""
        if watched or asyncio.get_running_loop().time() < self._settled_at:
            self._due.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        if self.ask is None:
            return
        while True:
            try:
                async with asyncio.timeout(reports.REPORT_S):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self._report(self.ask)
            await asyncio.sleep(APART_S)

    async def _report(self, ask: Ask) -> None:
        if self._link.live is None or not self._epoch():
            return  # the first beat of the next connection, and of a data set, is a change
        status = await ask()
        if status is None:
            return
        try:
            rows = reports.rows(status, self._host, self._token)
            await self._link.run(daemons.report(self._keys, self._daemon(), rows, self._kept_s))
            await self._note(status)
        except BrokerUnavailableError as error:
            log.debug("reporting: %s", error)
        except ReplyError as error:
            log.warning("what this daemon runs can't be reported: %s", error)

    async def _note(self, status: Mapping[str, Any]) -> None:
        """Write what has happened since the last report. Raises what a call raises."""
        newest, events = activity.fresh(status.get("activity"), self._noted)
        if events:
            name = str(status.get("name"))
            rows = [activity.encode(newest[0], event, name, self._host) for event in events]
            await self._link.run(daemons.note_activity(self._keys, self._daemon(), rows))
        self._noted = newest

    async def withdraw(self) -> None:
        """The daemon, or this scheduler of it, stops. Raises what a call raises."""
        if self.ask is not None:
            await self._link.run(daemons.withdraw_report(self._keys, self._daemon(), self._token))
