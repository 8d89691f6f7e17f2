"""Schedules made at run time: `upnext.schedule("nightly", report, cron="0 3 * * *")`. They are kept in Redis until they are removed.

A leader of the schedulers fires them as it fires declared crons. No registration, reload or stop of a service changes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from upnext import access, by_name
from upnext.core.schedules import LEAST_EVERY_S
from upnext.core.spec import CronSpec, MissedRunPolicy
from upnext.declare import Duration, checked_name, missed_run_policy, seconds, yes_or_no
from upnext.engine.calls import schedules as calls
from upnext.engine.views import crons as views
from upnext.errors import ServiceError, UsageError
from upnext.task import Submitter

TaskOrName = Submitter[..., Any] | str
MissedRuns = MissedRunPolicy | Literal["catch_up", "latest_only", "skip"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule as the broker has it now. Times are UTC, by the broker's clock."""

    name: str
    task: str
    cron: str | None
    """None: it has a distance, `every_s`."""
    every_s: float | None
    timezone: str
    last_at: datetime | None
    """Its newest tick that fired."""
    next_at: datetime | None
    paused: bool
    waits: str | None
    """Why it doesn't fire when it is due: it is paused, or its task is paused or not registered."""
    overlap: bool
    skipped: int
    """Ticks that found the job of an earlier one unfinished, with overlap=False."""


async def schedule(
    name: str,
    task: TaskOrName,
    /,
    *,
    cron: str | None = None,
    every: Duration | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timezone: str = "UTC",
    missed_run_policy: MissedRuns = MissedRunPolicy.LATEST_ONLY,
    max_catch_up_seconds: Duration | None = None,
    overlap: bool = True,
    check: bool = True,
    redis_url: str | None = None,
) -> Schedule:
    """Make a schedule, or change the one of this name -> the schedule.

    name: unique among schedules of the namespace, and no declared cron's.
    task: a task, what its `options(...)` gives (priority, queue_ttl, timeout, retries, result_ttl and labels go to each job), or its name.
    cron: as of `@worker.cron`; or every: seconds from one tick to the next, the first after so long; at least 1.
    args, kwargs: arguments of each job, checked as those of `submit`; at most 64 KiB as JSON.
    timezone, missed_run_policy, max_catch_up_seconds, overlap: as of `@worker.cron`.
    check: of a task by name; False: also where it is not registered. Until it is, the schedule waits.

    A schedule that was there keeps its pause and, where its times are the same, goes on from its last tick: a program may make its
    schedules at each start. Each job has the label `schedule`, its name.

    Raises UsageError for what can't be meant, for a name that a declared cron has, and where there are 1,000 schedules; for the arguments
    InvalidArgumentsError, EncodingError, PayloadTooLargeError; and what `submit` raises when the broker can't take it.
    """
    return await asyncio.to_thread(
        schedule_sync,
        name,
        task,
        cron=cron,
        every=every,
        args=args,
        kwargs=kwargs,
        timezone=timezone,
        missed_run_policy=missed_run_policy,
        max_catch_up_seconds=max_catch_up_seconds,
        overlap=overlap,
        check=check,
        redis_url=redis_url,
    )


def schedule_sync(
    name: str,
    task: TaskOrName,
    /,
    *,
    cron: str | None = None,
    every: Duration | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timezone: str = "UTC",
    missed_run_policy: MissedRuns = MissedRunPolicy.LATEST_ONLY,
    max_catch_up_seconds: Duration | None = None,
    overlap: bool = True,
    check: bool = True,
    redis_url: str | None = None,
) -> Schedule:
    """`schedule` for plain code: blocks for some round trips."""
    when = times(name, cron, every, timezone, missed_run_policy, max_catch_up_seconds, overlap)
    if isinstance(task, Submitter):
        job, own_url = task.planned(tuple(args), kwargs or {})
        redis_url = redis_url or own_url
    else:
        job = by_name.planned(task, args, kwargs or {}, check=check, redis_url=redis_url)
    broker = access.looking_client(redis_url)
    return _schedule(views.make(broker, broker.keys, name, when, job))


def times(
    name: str,
    cron: str | None,
    every: Duration | None,
    timezone: str = "UTC",
    missed_run_policy: MissedRuns = MissedRunPolicy.LATEST_ONLY,
    max_catch_up_seconds: Duration | None = None,
    overlap: bool = True,
) -> CronSpec:
    """When a schedule of this name is due. Raises UsageError for what can't be meant."""
    try:
        checked_name("schedule", name)
        return _when(f"schedule {name!r}", cron, every, timezone, missed_run_policy, max_catch_up_seconds, overlap)
    except ServiceError as error:  # given in a call, not in a declaration
        raise UsageError(str(error)) from None


async def schedules(*, redis_url: str | None = None) -> list[Schedule]:
    """All schedules that were made at run time, by name."""
    return await asyncio.to_thread(schedules_sync, redis_url=redis_url)


def schedules_sync(*, redis_url: str | None = None) -> list[Schedule]:
    """`schedules` for plain code."""
    broker = access.looking_client(redis_url)
    return [_schedule(one) for one in views.schedules(broker, broker.keys)]


async def pause_schedule(name: str, *, redis_url: str | None = None) -> bool:
    """Hold a schedule until it is resumed -> whether it was not paused before. Raises UsageError for an unknown one."""
    return await asyncio.to_thread(pause_schedule_sync, name, redis_url=redis_url)


def pause_schedule_sync(name: str, *, redis_url: str | None = None) -> bool:
    """`pause_schedule` for plain code."""
    return _switch(name, paused=True, redis_url=redis_url)


async def resume_schedule(name: str, *, redis_url: str | None = None) -> bool:
    """Let a schedule go on -> whether it was paused. Ticks of the pause are missed runs. Raises UsageError for an unknown one."""
    return await asyncio.to_thread(resume_schedule_sync, name, redis_url=redis_url)


def resume_schedule_sync(name: str, *, redis_url: str | None = None) -> bool:
    """`resume_schedule` for plain code."""
    return _switch(name, paused=False, redis_url=redis_url)


async def remove_schedule(name: str, *, redis_url: str | None = None) -> bool:
    """Remove a schedule -> whether there was one. Jobs that it has started stay."""
    return await asyncio.to_thread(remove_schedule_sync, name, redis_url=redis_url)


def remove_schedule_sync(name: str, *, redis_url: str | None = None) -> bool:
    """`remove_schedule` for plain code."""
    broker = access.looking_client(redis_url)
    return broker.run(calls.remove_schedule(broker.keys, name))


def _when(
    what: str,
    cron: str | None,
    every: Duration | None,
    timezone: str,
    missed: MissedRuns,
    max_catch_up: Duration | None,
    overlap: bool,
) -> CronSpec:
    """Raises ServiceError, and UsageError for an expression or a zone that doesn't exist."""
    if (cron is None) == (every is None):
        raise UsageError(f'{what}: give cron="0 9 * * *" or every=60, one of them')
    if cron is not None and not isinstance(cron, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not be type checked
        raise UsageError(f"{what}: cron must be text, not {cron!r}")
    every_s = None if every is None else seconds(what, "every", every)
    if every_s is not None and every_s < LEAST_EVERY_S:
        raise UsageError(f"{what}: every must be at least {LEAST_EVERY_S:g} second, not {every_s:g}")
    when = CronSpec(
        schedule=cron or "",
        timezone=timezone,
        missed=missed_run_policy(what, missed),
        max_catch_up_s=None if max_catch_up is None else seconds(what, "max_catch_up_seconds", max_catch_up),
        overlap=yes_or_no(what, "overlap", overlap),
        every_ms=None if every_s is None else round(every_s * 1000),
    )
    from upnext.core import cron as crons  # noqa: PLC0415 - croniter is slow to import, and most programs make no schedule

    try:
        never = crons.timing(when, 0).next_after(0) is None
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    if never:
        raise UsageError(f"{what}: cron {cron!r} is never due: there is no such day")
    return when


def _switch(name: str, *, paused: bool, redis_url: str | None) -> bool:
    broker = access.looking_client(redis_url)
    answer = broker.run(calls.switch_schedule(broker.keys, name, paused=paused))
    if answer == calls.UNKNOWN:
        views.schedule(broker, broker.keys, name)  # raises, with the names that are known
    return answer == calls.CHANGED


def _schedule(one: views.Cron) -> Schedule:
    return Schedule(
        name=one.name,
        task=one.task,
        cron=one.schedule if one.every_ms is None else None,
        every_s=None if one.every_ms is None else one.every_ms / 1000,
        timezone=one.timezone,
        last_at=_utc(one.last_ms),
        next_at=_utc(one.next_ms),
        paused=one.paused,
        waits=one.waits,
        overlap=one.overlap,
        skipped=one.skipped,
    )


def _utc(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
