"""What is known of a child that died, and the notices about it that the scheduler has not acknowledged yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from upnextd.shared.messages import Died, StartedJob
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import RunningJob


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a slot's previous child ended, as `status` shows it."""

    cause: str
    code: int | None
    signal: str | None
    at: str

    def as_json(self) -> dict[str, Any]:
        return {"cause": self.cause, "code": self.code, "signal": self.signal, "at": self.at}


@dataclass(frozen=True, slots=True)
class Death:
    """A child's end. `asked`: by us, for reasons that are no fault of its jobs. `oom`: the kernel killed it for memory."""

    status: ExitStatus | None
    asked: bool = False
    hung: bool = False
    oom: bool = False
    reason: str | None = None
    """Why it was asked: "recycled", "reloaded"; None otherwise."""

    @property
    def shown_cause(self) -> str:
        """For `status`: exit, signal, oom, hung, recycled or reloaded."""
        if self.hung:
            return "hung"
        if self.oom:
            return "oom"
        if self.asked and self.reason is not None:
            return self.reason
        return "signal" if self.status is not None and self.status.signal is not None else "exit"

    @property
    def cause(self) -> str:
        """For the records of its jobs: signal:SIGSEGV, oom, exit:3, hung, stopped."""
        if self.hung:
            return "hung"
        if self.oom:
            return "oom"
        if self.asked:
            return "stopped"
        return str(self.status) if self.status is not None else "unknown"

    @property
    def charge(self) -> bool:
        """Whether jobs that had started are charged a crash."""
        return self.hung or self.oom or not self.asked


def notice(
    consumer: str,
    death: Death,
    started: Iterable[RunningJob],
    detail: str,
    crash: str,
    suspects: int,
    ended: Iterable[RunningJob] = (),
) -> Died:
    """What the scheduler is sent of a consumer that ended."""
    return Died(
        consumer=consumer,
        cause=death.cause,
        charge=death.charge,
        started=tuple(map(_started, started)),
        detail=detail,
        crash=crash,
        suspects=suspects,
        ended=tuple(map(_started, ended)),
    )


def _started(job: RunningJob) -> StartedJob:
    return StartedJob(task=job.task, lane=job.lane, entry_id=job.entry_id, job_id=job.job_id, age_s=job.age_s)


class PendingDeathNotices:
    """Notices by consumer, until the scheduler says that it has reaped that consumer."""

    def __init__(self) -> None:
        self._pending: dict[str, Died] = {}

    def add(self, death: Died) -> None:
        self._pending[death.consumer] = death

    def acknowledge(self, consumer: str) -> None:
        self._pending.pop(consumer, None)

    @property
    def pending(self) -> list[Died]:
        """Oldest first."""
        return list(self._pending.values())

    def __len__(self) -> int:
        return len(self._pending)
