"""What the supervisor keeps of each instance, each slot and the daemon's end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from upnext.address import Address
from upnext.control.exits import ExitCode
from upnextd.rules.plan import QUARANTINE, Cause, Exit, InstanceView, Role
from upnextd.rules.slots import Life, State
from upnextd.supervisor.children import Child
from upnextd.supervisor.death_notices import LastExit
from upnextd.supervisor.log_tail import LogTail


@dataclass(slots=True, eq=False)
class Instance:
    """One life line of a slot: its state and its child. A slot has two while its child is being replaced."""

    id: int
    slot: str
    role: Role
    generation: int
    life: Life
    child: Child | None = None
    outdated: bool = False
    address: Address | None = None
    """Where it takes connections: of a process of an Api, also when its generation is known no more."""
    leave_s: float | None = None
    leave_by: float | None = None
    reason: str | None = None
    """Why it is being replaced, as `status` shows it afterwards: "recycled", "reloaded"; None otherwise."""
    timer: asyncio.TimerHandle | None = None
    exit_task: asyncio.Task[Any] | None = None
    """Handles the end of its child."""

    @property
    def unborn(self) -> bool:
        """A child was ordered, and its pid isn't known yet."""
        if self.life.state is State.SPAWNING:
            return True
        return self.life.state in (State.KILLING, State.KILLED) and self.child is not None and self.child.pid is None

    @property
    def counts(self) -> bool:
        """Whether it is one of the desired workers."""
        return self.role is Role.WORKER and self.slot != QUARANTINE

    def as_exit(self, child: Child, now: float) -> Exit:
        """What the restart policy would be given if the child ended now."""
        cause = Cause.DEATH
        if child.died_in_fork:
            cause = Cause.FORK
        elif child.boot_failure is not None:
            cause = Cause.START
        return Exit(
            asked=child.asked,
            ran_job=child.page.ran_job,
            ready_for_s=None if child.ready_at is None else now - child.ready_at,
            # A quarantine child is there to die of what it runs. Without a pid there never was a process.
            blameless=self.slot == QUARANTINE
            or (child.pid is None and not child.died_in_fork)
            or child.lifespan_failed
            or (child.boot_failure is not None and child.boot_failure[0] == ExitCode.UNAVAILABLE),
            role=self.role,
            cause=cause,
        )

    def view(self) -> InstanceView:
        life = self.life
        return InstanceView(
            self.id,
            self.slot,
            self.role,
            self.generation,
            life.state,
            life.drained,
            self.outdated,
            self.leave_s,
            self.leave_by,
        )


def oldest_jobs(instances: Iterable[Instance], now: float, *, ages: bool = True) -> str:
    """What is waited for in these instances, for people; `now`: monotonic seconds. Without `ages` the text changes with the jobs only."""
    children = [instance.child for instance in instances if instance.child is not None]
    jobs = [job for child in children for per_worker in child.page.running(now) for job in per_worker]
    if not jobs:
        return "no job running"
    oldest = sorted(jobs, key=lambda job: -job.age_s)[:3]
    named = ", ".join(f"{job.job_id} ({job.age_s:.0f} s)" if ages else job.job_id for job in oldest)
    more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
    return f"waiting for {named}{more}"


@dataclass(slots=True)
class SlotHistory:
    """What is remembered of a slot beyond its children."""

    incarnations: int = 0
    restarts: int = 0
    last_exit: LastExit | None = None
    start_failure: str = ""
    """Why its child could not start; empty once one is ready."""
    output: LogTail = field(default_factory=LogTail)


@dataclass(slots=True)
class SchedulerStatus:
    """What the scheduler child last reported of itself."""

    leader: bool = False
    epoch: int | None = None
    connected: bool = False
    suspects: bool = False
    """Suspects of a crash wait for a process that runs them alone."""


@dataclass(slots=True)
class Ending:
    """How the daemon is going to end."""

    code: int = ExitCode.OK
    killed_jobs: list[str] = field(default_factory=list[str])
    notices_by: float | None = None
