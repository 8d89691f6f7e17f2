"""The hang watch: whose loop doesn't beat is dumped, then aborted; and stacks on demand."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from upnextd import hangs, slots
from upnextd.children import Child
from upnextd.hangs import Pulse
from upnextd.plan import Role
from upnextd.slots import Event, State
from upnextd.stations import Station

if TYPE_CHECKING:
    from upnextd.supervisor import Supervisor

SCHEDULER_HANG_S = 3.0
_STACKS_AFTER_S = 0.1


class Pulses:
    """Looks at heartbeats at every tick, and has stacks written."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def feel(self, now: float) -> None:
        """Post HUNG and HUNG_ON to whoever doesn't beat."""
        for station in self._supervisor.stations:
            child = station.child
            if child is None or child.ready_at is None or station.life.state not in (*slots.SERVING, State.STOPPING):
                continue
            timeout_s = self._supervisor.settings.hang_timeout_s
            if station.role is Role.SCHEDULER:
                timeout_s = min(timeout_s, SCHEDULER_HANG_S)
            child.heart, pulse = hangs.look(child.heart, child.page.heartbeat, now, timeout_s)
            if pulse is Pulse.HUNG:
                self._supervisor.post(station, Event.HUNG)
            elif pulse is Pulse.HUNG_ON:
                self._supervisor.post(station, Event.HUNG_ON)

    def dump_hung(self, station: Station, child: Child) -> None:
        """Its stacks go to the log, and are kept for the records of its jobs."""
        loop = self._supervisor.loop
        age_s = child.heart.age_s(loop.time())
        child.signal(signal.SIGUSR2)

        def collect() -> None:
            stacks = "" if child.pidfd < 0 else child.new_stacks()
            child.stacks = stacks or child.stacks
            self._supervisor.log.fault(
                f"{station.slot}[{child.pid}] hangs: no heartbeat for {age_s:.1f} s\n{stacks.rstrip()}"
            )

        loop.call_later(_STACKS_AFTER_S, collect)

    async def stacks(self, child: Child) -> str:
        """A child's stacks now."""
        child.new_stacks()
        child.signal(signal.SIGUSR2)
        for _ in range(20):
            await asyncio.sleep(_STACKS_AFTER_S / 2)
            if child.pidfd < 0:
                break
            if text := child.new_stacks():
                return text
        return ""
