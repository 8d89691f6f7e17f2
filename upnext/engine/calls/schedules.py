"""Calls about schedules that are made at run time: set_schedule, switch_schedule, remove_schedule, list_schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upnext.core import schedules
from upnext.core.keys import Keys
from upnext.core.schedules import ScheduleSpec
from upnext.engine.calls.rows import bad_row, name
from upnext.engine.redis.scripts import Call, Calls, ident, script, text

NEW, KNOWN, FULL, TAKEN = 1, 0, -1, -2
CHANGED, UNCHANGED, UNKNOWN = 1, 0, -1


def set_schedule(keys: Keys, spec: ScheduleSpec, arguments: bytes) -> Call[int]:
    """-> NEW, KNOWN (it was there, and is changed), FULL (there are as many as may be), TAKEN (a declared cron has its name)."""
    return Call(
        script("set_schedule"),
        [keys.schedules, keys.schedules_arguments, keys.schedules_state, keys.crons],
        [spec.name, schedules.encode(spec), arguments, schedules.MOST_SCHEDULES, keys.bell],
        ident,
    )


def switch_schedule(keys: Keys, schedule: str, *, paused: bool) -> Call[int]:
    """-> CHANGED, UNCHANGED (it was so already) or UNKNOWN."""
    return Call(
        script("switch_schedule"), [keys.schedules, keys.schedules_state], [schedule, int(paused), keys.bell], ident
    )


def remove_schedule(keys: Keys, schedule: str) -> Call[bool]:
    """-> whether there was one."""
    return Call(
        script("remove_schedule"),
        [keys.schedules, keys.schedules_arguments, keys.schedules_state],
        [schedule, keys.bell],
        bool,
    )


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """One schedule as it is kept. `service` is that of its task, None while its task is not registered.

    arguments: only where one was asked for.
    """

    spec: ScheduleSpec
    cursor_ms: int
    last_ms: int | None
    skipped: int
    paused: bool
    task_paused: bool
    service: str | None
    arguments: bytes | None = None


SCHEDULES_A_CALL = 100


def list_schedules(keys: Keys, schedule: str = "") -> Calls[tuple[int, list[ScheduleFacts]]]:
    """-> (server ms, all by name; or the one that is asked for). Rows that can't be read are left out, and named in the log."""
    found: dict[str, ScheduleFacts] = {}
    cursor = b"0"
    while True:
        cursor, server_ms, *rows = yield Call(
            script("list_schedules"),
            [keys.schedules, keys.schedules_state, keys.schedules_arguments, keys.paused, keys.tasks],
            [schedule, cursor, SCHEDULES_A_CALL],
            ident,
        )
        found |= {facts.spec.name: facts for row in rows if (facts := _facts(keys, row)) is not None}
        if cursor == b"0":
            return server_ms, [facts for _, facts in sorted(found.items())]


def read_row(keys: Keys, field: bytes, raw: bytes) -> ScheduleSpec | None:
    """None, and a line in the log, for a row that can't be read."""
    known = name(field, keys.schedules)
    if known is None:
        return None
    try:
        return schedules.decode(known, raw)
    except ValueError:
        bad_row(keys.schedules, field, "has no schedule (or one of another version)", "HDEL")
        return None


def number(raw: bytes | None) -> int:
    """What `P:schedules:state` has in a field; 0 for nothing, and for what is not a number."""
    return int(raw) if raw and raw.isdigit() else 0


def _facts(keys: Keys, row: list[Any]) -> ScheduleFacts | None:
    field, raw, cursor, fired, skipped, paused, task_paused, service, arguments = row
    spec = read_row(keys, field, raw)
    if spec is None:
        return None
    return ScheduleFacts(
        spec,
        number(cursor),
        number(fired) or None,
        number(skipped),
        paused == 1,
        task_paused == 1,
        None if service is None else text(service),
        arguments,
    )
