"""Schedules that are made at run time, as Redis keeps them. Their arguments are kept apart, for a list of schedules shows none. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import orjson

from upnext.core.lanes import Lane
from upnext.core.spec import CronSpec, MissedRunPolicy

MOST_SCHEDULES = 1000
"""Of one namespace: the scheduler that leads reads all of them at each tick."""
MOST_ARGUMENTS_BYTES = 64 * 1024
LEAST_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """One schedule. `own`: what its jobs have in place of their task's options, and their labels (`upnext.core.own_options`).

    queue_ttl_s: each job expires unless it starts within so long of its tick.
    """

    name: str
    task: str
    when: CronSpec
    lane: str = Lane.NORMAL
    queue_ttl_s: float | None = None
    own: dict[str, Any] | None = None


def encode(spec: ScheduleSpec) -> bytes:
    """-> its row. What is the default is left out."""
    when = spec.when
    row: dict[str, Any] = {"task": spec.task, "missed": when.missed.value}
    if when.every_ms is None:
        row |= {"schedule": when.schedule, "timezone": when.timezone}
    else:
        row["every_ms"] = when.every_ms
    optional = {
        "max_catch_up_s": when.max_catch_up_s,
        "overlap": None if when.overlap else False,
        "lane": None if spec.lane == Lane.NORMAL else str(spec.lane),
        "queue_ttl_s": spec.queue_ttl_s,
        "own": spec.own,
    }
    return orjson.dumps(row | {name: value for name, value in optional.items() if value is not None})


def decode(name: str, raw: bytes) -> ScheduleSpec:
    """Raises ValueError for a row that has not what a schedule needs, each of its kind; what a newer version has besides is passed over."""
    row = orjson.loads(raw)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    row = cast("dict[str, Any]", row)
    every_ms = _number(row, "every_ms")
    if every_ms is not None and every_ms < 1:
        raise ValueError("every_ms is not a distance")
    when = CronSpec(
        schedule="" if every_ms is not None else _text(row, "schedule"),
        timezone="UTC" if every_ms is not None else _text(row, "timezone"),
        missed=MissedRunPolicy(_text(row, "missed")),
        max_catch_up_s=_number(row, "max_catch_up_s"),
        overlap=row.get("overlap") is not False,
        every_ms=None if every_ms is None else int(every_ms),
    )
    own = row.get("own")
    return ScheduleSpec(
        name=name,
        task=_text(row, "task"),
        when=when,
        lane=Lane.HIGH if row.get("lane") == Lane.HIGH else Lane.NORMAL,
        queue_ttl_s=_number(row, "queue_ttl_s"),
        own=cast("dict[str, Any]", own) if isinstance(own, dict) else None,
    )


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field} is not text")
    return value


def _number(row: dict[str, Any], field: str) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{field} is not a number")
    return value
