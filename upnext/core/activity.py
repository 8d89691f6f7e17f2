"""What happened to daemons, as `P:activity` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

KEPT = 10_000
"""So many entries are kept, of all daemons together."""
MOST_EVENTS = 50
"""Events that one call appends."""


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of a daemon; `text` is for people."""

    daemon: str
    name: str
    host: str
    at_ms: int
    kind: str
    slot: str
    text: str


def fresh(report: object, newest: tuple[int, int]) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """The events after `newest` (life, number) in what a supervisor tells its scheduler. -> the new newest, the events."""
    if not isinstance(report, dict):
        return newest, []  # a supervisor of an older version
    known = cast("dict[str, Any]", report)
    life = int(known["life"])
    after = newest[1] if newest[0] == life else 0
    events = [one for one in known["events"] if one["number"] > after][-MOST_EVENTS:]
    return (life, events[-1]["number"] if events else after), events


def encode(life: int, event: Mapping[str, Any], name: str, host: str) -> tuple[str, bytes]:
    """(LIFE-NUMBER, JSON) of an event, as an entry has it."""
    shown = {field: event[field] for field in ("at_ms", "kind", "slot", "text")}
    return f"{life}-{event['number']}", orjson.dumps({"name": name, "host": host, **shown})


def decode(fields: Mapping[bytes, bytes]) -> Happened | None:
    """What `note_activity` wrote; None for anything else."""
    try:
        row = orjson.loads(fields[b"e"])
        words = (str(row[name]) for name in ("kind", "slot", "text"))
        return Happened(
            fields[b"d"].decode("utf-8", "replace"), str(row["name"]), str(row["host"]), int(row["at_ms"]), *words
        )
    except (KeyError, TypeError, ValueError):
        return None
