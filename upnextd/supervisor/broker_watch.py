"""Log that the broker stops answering, and that it answers again: each once, and not a broker that is away for a moment.

What is known of it is the scheduler child's report, which comes within 3 s; without a scheduler, why the next one can't start.
"""

from __future__ import annotations

from upnext import config
from upnextd.rules.plan import Role
from upnextd.rules.slots import State
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet

AWAY_S = 1.0
"""So long it is away before that is logged."""


class BrokerWatch:
    """Look at what the scheduler reports, at every tick."""

    def __init__(self, fleet: Fleet, duties: Duties, log: Log) -> None:
        self._fleet = fleet
        self._duties = duties
        self._log = log
        self._away_since: float | None = None
        self._logged = False

    def check(self, now: float) -> None:
        """Log a change that has lasted. Until the daemon has started, and once it stops, others log it. `now`: monotonic seconds."""
        if not self._fleet.booted or self._fleet.desired.stopping:
            return
        if self._fleet.scheduler_status.connected:
            self._answers(now)
        elif self._away_since is not None or self._reported_away():
            self.missed(now)

    def missed(self, now: float) -> None:
        """It does not answer: by the scheduler's report, or a child could not start for it."""
        if self._away_since is None:
            self._away_since = now
        if not self._logged and now - self._away_since >= AWAY_S:
            self._logged = True
            url = config.redact(self._fleet.broker_url())
            self._log.fault(f"the broker does not answer ({url}): jobs wait, what runs goes on")
            self._duties.emit("broker", {"connected": False})

    def _answers(self, now: float) -> None:
        if self._logged and self._away_since is not None:
            self._log.note(f"the broker answers again, after {now - self._away_since:.0f} s")
            self._duties.emit("broker", {"connected": True})
        self._away_since, self._logged = None, False

    def _reported_away(self) -> bool:
        """A scheduler that is ready has it from the broker itself; one that is being replaced knows nothing yet."""
        return any(one.role is Role.SCHEDULER and one.life.state is State.READY for one in self._fleet.instances)
