"""Every error of UpNext, in one tree that says whose fault it is.

UpNextError
├── UsageError                 the caller's: wrong arguments, a bad option, a bad expression
│   ├── InvalidArgumentsError      arguments that don't fit the task's signature
│   ├── EncodingError              a value that cannot be sent or stored
│   ├── PayloadTooLargeError       a payload over the cap
│   └── ServiceError               a service file that can't be used
│       └── ConflictError              two definitions of one name
├── QueueError                 the broker's: unreachable, full, refusing
│   ├── BrokerUnavailableError     no connection, or lost before the request was sent: nothing was done
│   │   └── BrokerRefusedError         reached, but it won't have us: password, permissions, eviction policy
│   ├── SubmitUncertain            the reply to a submit was lost: it may or may not be queued
│   └── BrokerFullError            maxmemory reached: nothing was written
├── JobError                   of one job
│   ├── JobNotFoundError           this id is not known
│   ├── DuplicateJobError          the idempotency key is held by another job
│   └── TaskExecutionError         the job ended without a value (`.task_result` tells how)
│       └── TaskTimeoutError           … because it ran longer than its own timeout
├── LifespanError              what a service sets up in each process before its first job failed
│   └── SecretError                a secret is missing, unreadable, not declared, or asked for where none was read
├── ListenError                an address is taken, or can't be listened on
├── ControlError               the daemon's: it answered a control request with an error
├── DaemonNotRunningError      no daemon answers on the control socket
│   └── DaemonGoneError            it hung up before it answered
├── Retry                      raised by a task to ask for another attempt
├── NoBrokerError              no Redis URL is configured and no daemon with an embedded broker is running
└── BrokerInUseError           another process has its embedded broker in the state directory
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upnext.future import TaskResult


class UpNextError(Exception):
    """Base of all errors raised by UpNext."""


class UsageError(UpNextError):
    """The caller's fault; the message says what is wrong and what to do."""


class InvalidArgumentsError(UsageError, TypeError):
    """Arguments don't fit the task's signature, which the message shows."""


class EncodingError(UsageError, TypeError):
    """A value has no JSON form; the message names where it sits."""


class PayloadTooLargeError(UsageError, ValueError):
    """The encoded arguments are over the payload cap."""


class ServiceError(UsageError):
    """The service can't be used: missing, without a Worker, wrongly declared."""


class ConflictError(ServiceError):
    """Two workers, Apis or tasks of one name, or two Apis on one address; also tasks of two services."""


class LifespanError(UpNextError):
    """A lifespan failed; the message names its owner, `__cause__` is the error."""


class SecretError(LifespanError):
    """A secret can't be had; the message says why, and never holds the value."""


class ListenError(UpNextError):
    """An address is taken, or can't be listened on."""


class QueueError(UpNextError):
    """The broker can't serve the request."""


class BrokerUnavailableError(QueueError):
    """No connection to the broker; nothing was sent."""


class BrokerRefusedError(BrokerUnavailableError):
    """The broker answers but refuses: wrong password, missing permission, unsafe configuration."""


class SubmitUncertain(QueueError):  # noqa: N818 - a public name of the contract
    """The connection broke between sending a submit and its reply: the job may or may not be queued.

    Or an event with many handlers has reached a part of them, as the message says. Submit again with an idempotency key to be safe.
    """


class BrokerFullError(QueueError):
    """The broker is at its memory limit and takes no new jobs; nothing was written."""


class NoBrokerError(UpNextError):
    """No Redis URL is set anywhere, and no running daemon offers an embedded broker."""


class BrokerInUseError(UpNextError):
    """Another process has its embedded broker, or the data of one, in the same state directory. `pid` is that process, None if unknown."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class ControlError(UpNextError):
    """The daemon refuses a control request, or failed at it. `code` is an ErrorCode of upnext.control.protocol; `data` is for people."""

    def __init__(self, message: str, code: int, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class DaemonNotRunningError(UpNextError):
    """No daemon answers on the control socket."""


class DaemonGoneError(DaemonNotRunningError):
    """The daemon closed the control connection before it answered."""


class JobError(UpNextError):
    """About one job."""


class JobNotFoundError(JobError):
    """No job of this id (or this key) is queued, delayed, running or remembered."""

    def __init__(
        self, job_id: str, what: str = "job", why: str = "never submitted, or ended and its result has expired"
    ) -> None:
        super().__init__(f"no {what} {job_id!r}: {why}")
        self.job_id = job_id


class DuplicateJobError(JobError):
    """An idempotency key is in use. `job_id` is the job that holds it."""

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(f"idempotency key {key!r} is held by job {job_id}")
        self.key = key
        self.job_id = job_id


class TaskExecutionError(JobError):
    """The job ended without a value. `task_result` holds its status, error and attempts."""

    def __init__(self, message: str, task_result: TaskResult[Any]) -> None:
        super().__init__(message)
        self.task_result = task_result


class TaskTimeoutError(TaskExecutionError):
    """The job ran longer than its own timeout (not the caller's wait, which raises TimeoutError)."""


class Retry(UpNextError):  # noqa: N818 - reads `raise upnext.Retry(delay=5)`
    """Raised inside a task: run me again, after `delay` (seconds or a timedelta) or at the moment `at` (with a time zone; a past one: now).

    Neither: after the task's own backoff. Raises UsageError for both, and for a value that can't be meant.
    """

    def __init__(
        self,
        message: str = "retry requested",
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        if at is not None:
            delay = _until(at, delay)
        delay = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not isinstance(delay, (int, float, NoneType)):  # pyright: ignore[reportUnnecessaryIsInstance] - tasks may not be type checked
            raise UsageError(f"Retry: delay must be seconds or a timedelta, not {delay!r}")
        self.delay_s = delay


def _until(at: datetime, delay: object) -> timedelta:
    if delay is not None:
        raise UsageError("Retry: give delay= or at=, not both")
    if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
        raise UsageError(f"Retry: at must be a datetime, not {at!r}")
    if at.tzinfo is None:
        raise UsageError("Retry: at needs a time zone, as in datetime.now(UTC)")
    return max(timedelta(0), at - datetime.now(UTC))
