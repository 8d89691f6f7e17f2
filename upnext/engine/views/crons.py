"""Crons as a person sees them: when each ran and runs next, and running one now."""

from __future__ import annotations

from dataclasses import dataclass

from upnext.core import cron
from upnext.core.keys import Keys
from upnext.core.ownership import owner_of
from upnext.core.spec import CronSpec
from upnext.core.submission import Submission
from upnext.engine.calls import inspect
from upnext.engine.views.jobs import Transport
from upnext.errors import UsageError


@dataclass(frozen=True, slots=True)
class Cron:
    """`last_ms` is its newest tick that fired (None: it never did), `next_ms` the one to come."""

    name: str
    task: str
    schedule: str
    timezone: str
    service: str
    last_ms: int | None
    next_ms: int | None
    overlap: bool
    """Whether a tick starts a job while that of an earlier one has not ended."""
    skipped: int
    """Ticks that started none for that."""


def task_of(transport: Transport, keys: Keys, name: str) -> str:
    """The task that a cron runs. Raises UsageError for one that is unknown."""
    return submission(transport, keys, name).task


def crons(transport: Transport, keys: Keys) -> list[Cron]:
    """By name."""
    server_ms, found = transport.run(inspect.list_crons(keys))
    listed: list[Cron] = []
    for facts in found:
        definition = facts.definition
        spec = CronSpec(str(definition.get("schedule", "")), str(definition.get("timezone", "UTC")))
        try:
            next_ms = cron.parse(spec).next_after(server_ms)
        except UsageError:
            # Written by a version, or for a time zone database, that knows more than ours.
            next_ms = None
        listed.append(
            Cron(
                facts.name,
                definition.get("task", facts.name),
                spec.schedule,
                spec.timezone,
                owner_of(definition),
                facts.last_ms,
                next_ms,
                definition.get("overlap", True) is not False,
                facts.skipped,
            )
        )
    return listed


def submission(transport: Transport, keys: Keys, name: str) -> Submission:
    """What to submit to run a cron now, besides its schedule. Raises UsageError for an unknown one."""
    _, found = transport.run(inspect.list_crons(keys))
    for facts in found:
        if facts.name == name:
            return Submission(facts.definition.get("task", name), b"{}")
    names = ", ".join(facts.name for facts in found) or "none"
    raise UsageError(f"no cron {name!r} is known here (known: {names})")
