"""What runs by the clock, as a person sees it: when it ran and runs next; running one now, pausing and removing it.

Crons are declared by a service's code, schedules are made at run time. A cron and a schedule may have one name by chance (the cron was
declared later): what is asked by name is the cron then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upnext.core import cron
from upnext.core.keys import Keys
from upnext.core.lanes import Lane
from upnext.core.ownership import owner_of
from upnext.core.schedules import MOST_ARGUMENTS_BYTES, MOST_SCHEDULES, ScheduleSpec
from upnext.core.spec import CronSpec
from upnext.core.submission import Submission
from upnext.engine.calls import inspect
from upnext.engine.calls import schedules as calls
from upnext.engine.calls.inspect import CronFacts
from upnext.engine.calls.schedules import ScheduleFacts
from upnext.engine.redis.scripts import run_calls_blocking
from upnext.engine.views import tasks
from upnext.engine.views.jobs import Transport
from upnext.errors import PayloadTooLargeError, UsageError

OVERDUE_MS = 60_000
"""A tick that is later than this is missed: the leader fires them within a second."""


@dataclass(frozen=True, slots=True)
class Cron:
    """`last_ms` is its newest tick that fired (None: it never did), `next_ms` the one to come."""

    name: str
    task: str
    schedule: str
    """The expression, or `every 90 s`."""
    timezone: str
    service: str
    last_ms: int | None
    next_ms: int | None
    overlap: bool
    """Whether a tick starts a job while that of an earlier one has not ended."""
    skipped: int
    """Ticks that started none for that."""
    paused: bool = False
    made: bool = False
    """It is a schedule that was made at run time, not declared."""
    waits: str | None = None
    """Why it doesn't fire when it is due; None: it does."""
    unreadable: str | None = None
    """Why its definition can't be read."""
    every_ms: int | None = None
    overdue_ms: int | None = None
    """Since when a tick waits to be fired, where that is longer than OVERDUE_MS: no scheduler leads, or it can't."""


def crons(transport: Transport, keys: Keys) -> list[Cron]:
    """By name: what is declared, then what was made at run time."""
    server_ms, found = run_calls_blocking(inspect.list_crons(keys), transport.run)
    return [*(_declared(facts, server_ms) for facts in found), *schedules(transport, keys)]


def schedules(transport: Transport, keys: Keys) -> list[Cron]:
    """By name."""
    server_ms, found = run_calls_blocking(calls.list_schedules(keys), transport.run)
    return [_made(facts, server_ms) for facts in found]


def schedule(transport: Transport, keys: Keys, name: str) -> Cron:
    """One that was made at run time. Raises UsageError for one that is unknown."""
    server_ms, found = run_calls_blocking(calls.list_schedules(keys, name), transport.run)
    if not found:
        raise _no_schedule(transport, keys, name)
    return _made(found[0], server_ms)


def make(transport: Transport, keys: Keys, name: str, when: CronSpec, job: Submission) -> Cron:
    """Make a schedule of jobs like this one, or change that of this name.

    Raises UsageError where there are as many as may be, or a declared cron has the name; PayloadTooLargeError.
    """
    if len(job.payload) > MOST_ARGUMENTS_BYTES:
        raise PayloadTooLargeError(
            f"the arguments of schedule {name} are {len(job.payload):,} bytes as JSON, over the cap of {MOST_ARGUMENTS_BYTES:,}: "
            "store the data elsewhere and pass a reference"
        )
    own = dict(job.own or {})
    own["labels"] = {"schedule": name, **own.get("labels", {})}
    spec = ScheduleSpec(name, job.task, when, job.lane, job.queue_ttl_s, own)
    answer = transport.run(calls.set_schedule(keys, spec, job.payload))
    if answer == calls.FULL:
        raise UsageError(f"schedule {name!r}: there are {MOST_SCHEDULES:,} schedules already, which is the most")
    if answer == calls.TAKEN:
        raise UsageError(f"schedule {name!r}: a declared cron has this name; take another one")
    return schedule(transport, keys, name)


def submission(transport: Transport, keys: Keys, name: str) -> Submission:
    """What to submit to run one now, besides its times. Raises UsageError for an unknown one."""
    definition = _definition(transport, keys, name)
    if definition is not None:
        payload = definition.get("payload", "{}")
        return Submission(definition.get("task", name), payload.encode() if isinstance(payload, str) else b"{}")
    _, found = run_calls_blocking(calls.list_schedules(keys, name), transport.run)
    if not found:
        raise _unknown(transport, keys, name)
    spec = found[0].spec
    return Submission(
        spec.task,
        found[0].arguments or b"{}",
        "high" if spec.lane == Lane.HIGH else "normal",
        queue_ttl_s=spec.queue_ttl_s,
        own=spec.own,
    )


def switch(transport: Transport, keys: Keys, name: str, *, paused: bool) -> tuple[str, bool]:
    """Pause or resume it. -> (its task, whether that changed anything). Raises UsageError for an unknown one.

    The pause of a cron is that of its task, whose queued jobs wait, too; that of a schedule holds its ticks alone.
    """
    definition = _definition(transport, keys, name)
    if definition is not None:
        task = str(definition.get("task", name))
        return task, (tasks.pause if paused else tasks.resume)(transport, keys, task)
    answer = transport.run(calls.switch_schedule(keys, name, paused=paused))
    if answer == calls.UNKNOWN:
        raise _unknown(transport, keys, name)
    return schedule(transport, keys, name).task, answer == calls.CHANGED


def remove(transport: Transport, keys: Keys, name: str) -> None:
    """Remove a schedule that was made at run time; its queued jobs stay. Raises UsageError for anything else."""
    if not transport.run(calls.remove_schedule(keys, name)):
        if _definition(transport, keys, name) is not None:
            raise UsageError(
                f"cron {name} is declared by a service: remove it from the code, or hold it with `upnext cron pause {name}`"
            )
        raise _no_schedule(transport, keys, name)


def _definition(transport: Transport, keys: Keys, name: str) -> dict[str, Any] | None:
    _, found = run_calls_blocking(inspect.list_crons(keys), transport.run)
    return next((facts.definition for facts in found if facts.name == name), None)


def _declared(facts: CronFacts, server_ms: int) -> Cron:
    definition = facts.definition
    when = CronSpec(str(definition.get("schedule", "")), str(definition.get("timezone", "UTC")))
    waits = "it is paused" if facts.paused else None
    return Cron(
        name=facts.name,
        task=definition.get("task", facts.name),
        schedule=when.schedule,
        timezone=when.timezone,
        service=owner_of(definition),
        last_ms=facts.last_ms,
        next_ms=_next_ms(when, 0, server_ms) if facts.unreadable is None else None,
        overlap=definition.get("overlap", True) is not False,
        skipped=facts.skipped,
        paused=facts.paused,
        waits=waits if facts.unreadable is None else f"{facts.unreadable}: `upnext doctor`",
        unreadable=facts.unreadable,
        overdue_ms=None if facts.paused or facts.unreadable else _overdue_ms(when, facts.cursor_ms, server_ms),
    )


def _overdue_ms(when: CronSpec, cursor_ms: int | None, now_ms: int) -> int | None:
    if cursor_ms is None:
        return None
    due_ms = _next_ms(when, 0, cursor_ms)
    return due_ms if due_ms is not None and due_ms < now_ms - OVERDUE_MS else None


def _made(facts: ScheduleFacts, server_ms: int) -> Cron:
    spec, when = facts.spec, facts.spec.when
    return Cron(
        name=spec.name,
        task=spec.task,
        schedule=when.schedule if when.every_ms is None else f"every {when.every_ms / 1000:g} s",
        timezone=when.timezone,
        service=facts.service or "",
        last_ms=facts.last_ms,
        next_ms=_next_ms(when, facts.cursor_ms, server_ms),
        overlap=when.overlap,
        skipped=facts.skipped,
        paused=facts.paused,
        made=True,
        waits=_waits(facts),
        every_ms=when.every_ms,
    )


def _waits(facts: ScheduleFacts) -> str | None:
    if facts.paused:
        return "it is paused"
    if facts.service is None:
        return f"its task {facts.spec.task} is not registered"
    return f"its task {facts.spec.task} is paused" if facts.task_paused else None


def _next_ms(when: CronSpec, cursor_ms: int, server_ms: int) -> int | None:
    try:
        return cron.timing(when, cursor_ms).next_after(server_ms)
    except UsageError:
        # Written by a version, or for a time zone database, that knows more than ours.
        return None


def _unknown(transport: Transport, keys: Keys, name: str) -> UsageError:
    names = ", ".join(one.name for one in crons(transport, keys)) or "none"
    return UsageError(f"no cron {name!r} is known here (known: {names})")


def _no_schedule(transport: Transport, keys: Keys, name: str) -> UsageError:
    names = ", ".join(one.name for one in schedules(transport, keys)) or "none"
    return UsageError(f"no schedule {name!r} is known here (known: {names})")
