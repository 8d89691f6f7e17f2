"""When a child is replaced for its age or size: a worker after so many jobs, a worker or a process of an Api over so much memory.

Limits are jittered, so that children that started together don't go together; of each role one goes at a time, and its replacement is
ready before it drains.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from upnext.control.slot_names import api_slots
from upnext.core.counted import counted
from upnextd.rules.plan import Role
from upnextd.rules.slots import State
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import Log
from upnextd.supervisor.duties import Duties
from upnextd.supervisor.fleet import Fleet

JITTER = 0.1
_CHECK_S = 0.5


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """What one child may do before it is replaced; None: without end."""

    jobs: int | None
    rss_bytes: int | None

    def used_up(self, jobs: int, rss_bytes: int) -> str | None:
        """Why it is to go, in a few words; None: it may stay."""
        if self.jobs is not None and jobs >= self.jobs:
            return counted(jobs, "job")
        if self.rss_bytes is not None and rss_bytes > self.rss_bytes:
            return f"{rss_bytes >> 20} MiB"
        return None

    def too_small(self, rss_bytes: int) -> bool:
        """For one that ran no job yet. Its successor would be as big."""
        return self.rss_bytes is not None and rss_bytes > self.rss_bytes


def limits_of(max_jobs: int | None, max_rss_bytes: int | None, token: int) -> RecycleLimits:
    """A child's own limits, by its token: at least `max_jobs` and up to 10 % more; `max_rss_bytes` or up to 10 % less."""
    rng = random.Random(token)
    jobs = None if max_jobs is None else max_jobs + int(max_jobs * JITTER * rng.random())
    rss = None if max_rss_bytes is None else int(max_rss_bytes * (1 - JITTER * rng.random()))
    return RecycleLimits(jobs, rss)


class Recycling:
    """Mark children that have used up what they may."""

    def __init__(
        self,
        fleet: Fleet,
        duties: Duties,
        kernel: Kernel,
        log: Log,
        max_jobs: int | None,
        max_rss_bytes: int | None,
    ) -> None:
        self._fleet = fleet
        self._duties = duties
        self._kernel = kernel
        self._log = log
        self._max_jobs = max_jobs
        self._max_rss_bytes = max_rss_bytes
        self._checked_at = 0.0
        self._warned = set[str]()

    def check(self, now: float) -> None:
        """Mark at most one worker and one process of an Api as outdated. `now`: monotonic seconds."""
        if self._max_jobs is None and self._max_rss_bytes is None:
            return
        if now - self._checked_at < _CHECK_S or self._fleet.desired.stopping or self._fleet.rollouts.under_way:
            return
        self._checked_at = now
        self._check_role(Role.WORKER, self._fleet.desired.workers, self._max_jobs, "job")
        # A request is no job: of an Api, only its size counts.
        self._check_role(Role.API, len(api_slots(self._fleet.desired.apis)), None, "request")

    def _check_role(self, role: Role, wanted: int, max_jobs: int | None, work: str) -> None:
        """Mark at most one of a role. `wanted`: how many of it there are to be; `work`: what it does."""
        instances = [instance for instance in self._fleet.serving if instance.role is role]
        staying = [instance for instance in instances if instance.leave_by is None]
        coming = any(self._fleet.is_outdated(instance) for instance in staying)
        if coming or len(instances) - len(staying) > max(1, wanted):
            # One replacement at a time. Those that only finish what runs don't count, as long as they are few.
            return
        for instance in staying:
            child = instance.child
            if child is None or child.pid is None or instance.life.state is not State.READY:
                continue
            limits = limits_of(max_jobs, self._max_rss_bytes, child.token)
            rss_bytes = 0 if limits.rss_bytes is None else self._kernel.rss_bytes(child.pid)
            if limits.too_small(rss_bytes) and not child.page.ran_job:
                self._warn_too_small(instance.slot, work, rss_bytes)
                continue
            why = limits.used_up(child.page.attempts, rss_bytes)
            if why is not None:
                self._log.note(f"{instance.slot}[{child.pid}] is recycled after {why}")
                instance.outdated = True
                instance.reason = "recycled"
                self._duties.wake()
                return

    def _warn_too_small(self, slot: str, work: str, rss_bytes: int) -> None:
        """Log it once for each role: a successor would be as big."""
        if work not in self._warned:
            self._log.caution(f"{slot} has {rss_bytes >> 20} MiB before its first {work}: --max-rss is too small")
        self._warned.add(work)
