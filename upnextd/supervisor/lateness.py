"""A supervisor that was stopped for a while, by SIGSTOP or with its machine, charges that time to none of its children."""

from __future__ import annotations

from collections.abc import Callable

from upnextd.shared.logs import Log
from upnextd.supervisor.fleet import Fleet

TICK_S = 1.0
"""The supervisor compares desired and observed this often when nothing happens."""
LATE_S = 1.0
"""A tick that is later by this means that the supervisor was stopped or the machine slept."""


class Lateness:
    """Move deadlines by the time for which the supervisor did not run. `clock`: monotonic seconds."""

    def __init__(self, fleet: Fleet, log: Log, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._log = log
        self._clock = clock
        self._last_tick = clock()

    def ticked(self) -> None:
        """Note that the supervisor runs."""
        self._last_tick = self._clock()

    def forgive(self) -> None:
        """Move what is due, if the last tick is too long ago. A timer that fires before the moved deadline is set anew."""
        late_s = self._clock() - self._last_tick - TICK_S
        if late_s < LATE_S:
            return
        self.ticked()
        self._log.caution(f"the supervisor itself was held up for {late_s:.1f} s; deadlines are moved by as much")
        self._fleet.forgive(late_s)
