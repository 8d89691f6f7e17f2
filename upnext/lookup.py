"""What is known of jobs, without waiting for them: `upnext.job`, `upnext.jobs`, `Future.status`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from upnext import access
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import checked_key
from upnext.engine.views import jobs as views
from upnext.errors import UsageError


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the broker has it now. Times are UTC, by the broker's clock; None: unknown, or means nothing in this state."""

    job_id: str
    task: str
    status: JobStatus
    attempt: int
    """From 1."""
    max_attempts: int | None
    """None: tried for ever, or its task is not registered."""
    crashes: int
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None
    """When a delayed one may start."""
    value: Any
    """What the function returned, as plain JSON."""
    error: str | None
    """`TYPE: message` of the exception that ended it."""
    failure_reason: FailureReason | None
    worker: str | None
    parent_id: str | None
    root_id: str | None
    progress: dict[str, Any] | None
    labels: dict[str, str]
    via: str | None
    """What submitted it, where that was no job: `POST /orders`, `cron NAME`, `schedule NAME`, `event NAME`; None: a program."""


async def job(
    job_id: str | None = None, *, key: str | None = None, task: str | None = None, redis_url: str | None = None
) -> Job:
    """Look a job up, by its id or by its idempotency key: `upnext.job(key="order-1", task="charge")`.

    key: of the job that holds it, or held it last; that is known for as long as the job's result (of a dead letter for 7 days at least).
    task: whose key it is, for each task has keys of its own; None: of whichever task there is a job, among those that services registered.

    Raises JobNotFoundError for an id or a key that is not known (any more), UsageError for text that is no id, and for a key that jobs of
    several tasks have.
    """
    return await asyncio.to_thread(job_sync, job_id, key=key, task=task, redis_url=redis_url)


def job_sync(
    job_id: str | None = None, *, key: str | None = None, task: str | None = None, redis_url: str | None = None
) -> Job:
    """`job` for plain code: blocks for a round trip or two."""
    if (job_id is None) == (key is None):
        raise UsageError("job: give an id or key=, one of them")
    if task is not None and key is None:
        raise UsageError("job: task= says whose key it is; an id names its task itself")
    broker = access.looking_client(redis_url)
    if key is not None:
        job_id = views.id_of_key(broker, broker.keys, checked_key(key), task)
    return _job(views.job(broker, broker.keys, str(job_id)))


async def jobs(
    *, state: JobStatus | str | None = None, task: str | None = None, limit: int = 100, redis_url: str | None = None
) -> list[Job]:
    """At most `limit` jobs: running ones, queued ones (oldest first), delayed ones (soonest first), recent ends (newest first).

    state: of this state only ("queued", "delayed", "running", "done", "failed", "cancelled", "dead"). task: of this task only.
    Raises UsageError for a state that doesn't exist.
    """
    return await asyncio.to_thread(jobs_sync, state=state, task=task, limit=limit, redis_url=redis_url)


def jobs_sync(
    *, state: JobStatus | str | None = None, task: str | None = None, limit: int = 100, redis_url: str | None = None
) -> list[Job]:
    """`jobs` for plain code: blocks for some round trips."""
    if not isinstance(limit, int) or limit < 1:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
        raise UsageError(f"jobs: limit must be a whole number of at least 1, not {limit!r}")
    wanted = None if state is None else _status(state)
    broker = access.looking_client(redis_url)
    return [_job(one) for one in views.jobs(broker, broker.keys, wanted, task, limit)]


def _status(state: JobStatus | str) -> JobStatus:
    try:
        return JobStatus(state)
    except ValueError:
        raise UsageError(f"jobs: state must be one of {', '.join(JobStatus)}, not {state!r}") from None


def _job(one: views.Job) -> Job:
    return Job(
        job_id=one.job_id,
        task=one.task,
        status=one.status,
        attempt=one.attempt,
        max_attempts=one.max_attempts,
        crashes=one.crashes,
        submitted_at=_utc(one.submitted_ms),
        started_at=_utc(one.started_ms),
        finished_at=_utc(one.finished_ms),
        due_at=_utc(one.due_ms),
        value=None if one.value is None else orjson.loads(one.value),
        error=None if one.error is None else str(one.error),
        failure_reason=one.reason,
        worker=one.worker,
        parent_id=one.parent_id,
        root_id=one.root_id,
        progress=one.progress,
        labels=one.labels,
        via=one.via,
    )


def _utc(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
