"""What people did and what happened to daemons, as one list by time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from upnext.core import activity
from upnext.core.keys import Keys
from upnext.engine.client.sync_client import SyncQueueClient

SCANNED = 300
"""Lines of each kind that one look goes through where it wants those of one daemon."""

Line = dict[str, Any]
"""`id`, `at_ms`, `kind`, `who`, `what`, `target`, and of a daemon `daemon`, `name`, `host`; kind `action`: a person did it."""
_Place = tuple[int, int, int]
"""Where a line stands: its entry's id, and of two with the same one an action is the newer."""
_EVENT = "e"
"""The end of an event's id. An action's is that of its entry."""


def lines(
    client: SyncQueueClient, keys: Keys, before: str | None, daemon: str | None, most: int
) -> tuple[list[Line], str | None]:
    """-> at most so many lines, newest first, and the id to go on before; None: that was all."""
    count = most if daemon is None else SCANNED
    found: list[tuple[_Place, Line | None]] = []
    since: _Place = (0, 0, 0)
    for key, end, read in ((keys.audit, "", _action), (keys.activity, _EVENT, _event)):
        rows = client.command("XREVRANGE", key, _up_to(before, end), "-", "COUNT", count)
        part = [_read(entry.decode() + end, fields, read) for entry, fields in rows]
        found += part
        if len(part) == count:  # there may be more: what the other one has of before that is for a further look
            since = max(since, part[-1][0])
    whole = sorted((one for one in found if one[0] >= since), key=lambda one: one[0], reverse=True)
    kept = [line for _, line in whole if line is not None and (daemon is None or line.get("daemon") == daemon)]
    if len(kept) > most:
        return kept[:most], kept[most - 1]["id"]
    return kept, _id(since) if since > (0, 0, 0) else None


def is_id(text: str) -> bool:
    """Whether this may be the id of a line."""
    return re.fullmatch(r"\d{1,15}-\d{1,15}e?", text, re.ASCII) is not None


def _up_to(before: str | None, end: str) -> str:
    if before is None:
        return "+"
    event_of_same_id = end == _EVENT and not before.endswith(_EVENT)
    return before if event_of_same_id else f"({before.removesuffix(_EVENT)}"


def _place(line_id: str) -> _Place:
    at_ms, _, number = line_id.removesuffix(_EVENT).partition("-")
    return int(at_ms), int(number), 0 if line_id.endswith(_EVENT) else 1


def _id(place: _Place) -> str:
    return f"{place[0]}-{place[1]}" + ("" if place[2] else _EVENT)


def _read(
    line_id: str, fields: list[bytes], read: Callable[[Mapping[bytes, bytes]], Line | None]
) -> tuple[_Place, Line | None]:
    place, line = _place(line_id), read(dict(zip(fields[::2], fields[1::2], strict=False)))
    return place, line and {
        "id": line_id,
        "at_ms": place[0],
        "who": "",
        "what": "",
        "target": "",
        "daemon": None,
        **line,
    }


def _action(fields: Mapping[bytes, bytes]) -> Line | None:
    try:
        row = orjson.loads(fields[b"e"])
    except (KeyError, orjson.JSONDecodeError):
        return None
    return {"kind": "action", **row} if isinstance(row, dict) else None


def _event(fields: Mapping[bytes, bytes]) -> Line | None:
    one = activity.decode(fields)
    if one is None:
        return None
    return {
        "at_ms": one.at_ms,
        "kind": one.kind,
        "who": f"{one.name} on {one.host}",
        "what": one.text,
        "target": one.slot,
        "daemon": one.daemon,
        "name": one.name,
        "host": one.host,
    }
