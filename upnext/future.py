"""A submitted job, seen by who submitted it: `Future`, and how it ended: `TaskResult`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import orjson

from upnext import access
from upnext.core import ids
from upnext.core.outcome import FailureReason, JobStatus, Outcome
from upnext.core.spec import TaskSpec
from upnext.declare import Duration, is_number
from upnext.errors import TaskExecutionError, TaskTimeoutError, UsageError

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[T_co]):
    """How a job ended. Times are UTC; a job that never started has no `started_at`."""

    value: T_co
    """What the function returned, converted by its return annotation. None unless `ok`."""
    job_id: str
    function: str
    """The task's name."""
    function_name: str
    """The `__name__` of the task's function; the task's name where the function isn't known here."""
    status: JobStatus
    error: str | None = None
    """`TYPE: message` of the exception that ended it."""
    failure_reason: FailureReason | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    attempts: int = 1
    parent_id: str | None = None
    root_id: str | None = None
    """The first job of its family: itself when it has no parent."""
    crashes: int = 0
    """How often a worker died while it ran this job."""
    cause: str | None = None
    """What killed the worker, of a crash: `signal:SIGSEGV`, `oom`, `exit:3`, `hung`."""
    traceback: str | None = None
    """What Python would have printed."""

    @property
    def ok(self) -> bool:
        """Whether it has a value."""
        return self.status is JobStatus.DONE


PROGRESS_S = 0.25
"""How often `Future.progress` looks."""
_LIVING = (JobStatus.QUEUED, JobStatus.DELAYED, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job says it is: `fraction` in the measure that its task chose, and a line of text."""

    fraction: float | None
    message: str | None


class Future(Generic[T_co]):
    """A handle on one job, by its id. Awaiting it is `value()`.

    Made by `submit`; `upnext.Future(job_id)` makes one for any id (its value is plain JSON then), `task.future(job_id)` a typed one.
    It holds no connection and may be kept, or dropped, freely.
    """

    __slots__ = ("_outcome", "_redis_url", "_spec", "job_id")

    def __init__(self, job_id: str, *, redis_url: str | None = None, spec: TaskSpec | None = None) -> None:
        if not isinstance(job_id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
            raise UsageError(f"a job id is text, not {job_id!r}")
        self.job_id = job_id
        self._redis_url = redis_url
        self._spec = spec
        self._outcome: Outcome | None = None

    async def result(self, timeout: Duration | None = None) -> TaskResult[T_co]:
        """Waits until the job has ended; at most `timeout` seconds.

        Inside a task, the waiting task's concurrency slot is free meanwhile.

        Raises TaskExecutionError when the job failed, was cancelled or buried (TaskTimeoutError when it ran longer than its own
        timeout), with
        `.task_result`; the built-in TimeoutError when `timeout` runs out, which leaves the job as it is; JobNotFoundError for an id that
        is not known (its result expired, perhaps); QueueError when the broker is away.
        """
        timeout_s, outcome = _waiting_s(timeout), self._outcome
        if outcome is None:
            async with access.slot_given_back():
                outcome = await access.async_broker(self._redis_url).wait(self.job_id, timeout_s)
        return self._ended(outcome)

    async def value(self, timeout: Duration | None = None) -> T_co:
        """What the function returned. Waits and raises as `result` does."""
        return (await self.result(timeout)).value

    async def status(self) -> JobStatus:
        """The job's state now, without waiting for its end; `upnext.job(job_id)` has more.

        Raises JobNotFoundError for an id that is not known (any more).
        """
        from upnext import lookup  # noqa: PLC0415 - most code waits for results instead

        return (await lookup.job(self.job_id, redis_url=self._redis_url)).status

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """What the job shows by `set_progress`, each time that it has changed, until the job has ended.

        Several changes within PROGRESS_S may be seen as one. Raises JobNotFoundError for an id that is not known (any more).
        """
        from upnext import lookup  # noqa: PLC0415 - as above

        last: Progress | None = None
        while True:
            known = await lookup.job(self.job_id, redis_url=self._redis_url)
            if known.progress is not None:
                now = Progress(known.progress.get("progress"), known.progress.get("message"))
                if now != last:
                    yield now
                last = now
            if known.status not in _LIVING:
                return
            await asyncio.sleep(PROGRESS_S)

    async def cancel(self) -> bool:
        """Asks to end the job: a waiting one is removed, a running one is stopped. -> whether it was still there to be cancelled.

        Cancelling twice, or a job that has ended, does nothing. A running job's end, `cancelled` or not, is what `result` tells.
        """
        return await access.async_broker(self._redis_url).cancel(self.job_id)

    def result_sync(self, timeout: Duration | None = None) -> TaskResult[T_co]:
        """`result` for plain code: blocks the thread. In an `async def` it blocks the whole event loop; use `result` there."""
        timeout_s, outcome = _waiting_s(timeout), self._outcome
        if outcome is None:
            with access.slot_given_back_sync():
                outcome = access.sync_broker(self._redis_url).wait(self.job_id, timeout_s)
        return self._ended(outcome)

    def value_sync(self, timeout: Duration | None = None) -> T_co:
        """`value` for plain code; blocks as `result_sync` does."""
        return self.result_sync(timeout).value

    def status_sync(self) -> JobStatus:
        """`status` for plain code; blocks for a round trip."""
        from upnext import lookup  # noqa: PLC0415 - as above

        return lookup.job_sync(self.job_id, redis_url=self._redis_url).status

    def cancel_sync(self) -> bool:
        """`cancel` for plain code; blocks for a round trip."""
        return access.sync_broker(self._redis_url).cancel(self.job_id)

    def _ended(self, outcome: Outcome) -> TaskResult[Any]:
        result = succeeded(self.job_id, outcome, self._spec)
        self._outcome = outcome  # only a value is final: a dead letter may be retried under the same id
        return result

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self.value().__await__()

    def __repr__(self) -> str:
        return f"<Future {self.job_id}>"


def _waiting_s(timeout: Duration | None) -> float | None:
    """What is left of a deadline may be below zero, and is none for infinity."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is None or seconds == math.inf:
        return None
    if not is_number(seconds):
        raise UsageError(f"result: timeout must be seconds, or None for no limit, not {timeout!r}")
    return max(0.0, seconds)


def succeeded(job_id: str, outcome: Outcome, spec: TaskSpec | None) -> TaskResult[Any]:
    """-> the result of a job that has a value; raises TaskExecutionError or TaskTimeoutError for any other end."""
    result = task_result(job_id, outcome, spec)
    if result.ok:
        return result
    kind = TaskTimeoutError if result.failure_reason is FailureReason.TIMEOUT else TaskExecutionError
    raise kind(_why(result), result)


def task_result(job_id: str, outcome: Outcome, spec: TaskSpec | None) -> TaskResult[Any]:
    """An outcome in the words of the SDK. `spec` converts the value by its annotation; without one it is plain JSON."""
    task = spec.name if spec is not None else ids.parse(job_id).task
    value = None
    if outcome.status is JobStatus.DONE:
        value = spec.arguments.decode_result(outcome.value) if spec is not None else orjson.loads(outcome.value)
    error = outcome.error
    return TaskResult(
        value=value,
        job_id=job_id,
        function=task,
        function_name=getattr(spec.function, "__name__", task) if spec is not None else task,
        status=outcome.status,
        error=str(error) if error is not None else None,
        failure_reason=outcome.reason,
        started_at=_utc(outcome.begun_ms),
        completed_at=_utc(outcome.finished_ms),
        attempts=outcome.attempt,
        parent_id=outcome.parent_id,
        root_id=outcome.root_id or job_id,
        crashes=outcome.crashes,
        cause=outcome.cause,
        traceback=(error.traceback or None) if error is not None else None,
    )


def _utc(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _why(result: TaskResult[Any]) -> str:
    """One line: which job, how it ended, why."""
    line = f"job {result.job_id} {_ENDS.get(result.failure_reason, _FAILED)}"
    if result.failure_reason is FailureReason.CRASH:
        line += f" {result.crashes} times" + (f" ({result.cause})" if result.cause else "")
    if result.attempts > 1:
        line += f" at attempt {result.attempts}"
    return f"{line}: {result.error}" if result.error else line


_FAILED = "failed"
_ENDS: dict[FailureReason | None, str] = {
    FailureReason.ERROR: _FAILED,
    FailureReason.TIMEOUT: "ran longer than its timeout",
    FailureReason.CRASH: "was buried: its worker died",
    FailureReason.CANCELLED: "was cancelled",
    FailureReason.EXPIRED: "expired before it started",
    FailureReason.UNKNOWN: _FAILED,
}
