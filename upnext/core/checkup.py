"""What is wrong with what a key of the map holds, row by row: for `upnext doctor` and for lists that show what they can't read.

A row says nothing wrong when a newer version wrote it: its `schema` says so, and it is left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import orjson

from upnext.core import ids, outcome
from upnext.core.entry import decode_meta
from upnext.core.keys import ROWS, SCHEMA, Key

MOST_BYTES = 64 << 10
"""Longer fields and values are not read to their ends: of those only the beginning counts."""
LATEST_MS = 4e12
"""In the year 2096."""

_NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[+-]?\d+)?")
_PLACE = re.compile(rb"[nhbx] \d+-\d+")
_BYTES = re.compile(rb"\d+ \d+")
_ENTRY = re.compile(rb"p(\d+)")
_HEAD = re.compile(rb"[nh](\d+):")

Check = Callable[[bytes], str | None]


def _nothing(_raw: bytes) -> str | None:
    return None


def why_no_text(raw: bytes) -> str | None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return None if error.end == len(raw) == MOST_BYTES else "is not UTF-8"
    return None


def why_no_job_id(raw: bytes) -> str | None:
    return why_no_text(raw) or (None if ids.is_id(raw.decode()) else "is not a job id")


def why_no_number(raw: bytes) -> str | None:
    return None if _NUMBER.fullmatch(raw) else "is not a number"


def why_no_object(raw: bytes) -> str | None:
    """Why a value is not a JSON object."""
    if len(raw) >= MOST_BYTES:
        return None if raw.startswith(b"{") else "is not a JSON object"
    try:
        return None if isinstance(orjson.loads(raw), dict) else "is not a JSON object"
    except orjson.JSONDecodeError:
        return "is not JSON"


def _fields(**kinds: type | tuple[type, ...]) -> Check:
    """A JSON object with these fields, where it has them, of these kinds."""

    def check(raw: bytes) -> str | None:
        if (why := why_no_object(raw)) is not None or len(raw) >= MOST_BYTES:
            return why
        row = cast("dict[str, Any]", orjson.loads(raw))
        wrong = [name for name, kind in kinds.items() if row.get(name) is not None and not isinstance(row[name], kind)]
        return f"has another type in its {wrong[0]!r}" if wrong and not is_newer(row) else None

    return check


def is_newer(row: Mapping[str, Any]) -> bool:
    """Whether a version with a newer schema wrote it."""
    schema = row.get("schema")
    return isinstance(schema, int) and schema > SCHEMA


def is_cron(row: Mapping[str, Any]) -> bool:
    """Whether a definition has what a cron needs, each of its kind; what a newer version has besides is passed over."""
    texts = all(isinstance(row.get(field), str) for field in ("schedule", "timezone", "missed"))
    numbers = all(isinstance(row.get(field, 0), int | float | None) for field in ("last_seen_ms", "max_catch_up_s"))
    return texts and numbers and row.get("last_seen_ms", 0) is not None


def why_no_cron(raw: bytes) -> str | None:
    if (why := why_no_object(raw)) is not None or len(raw) >= MOST_BYTES:
        return why
    row = cast("dict[str, Any]", orjson.loads(raw))
    return None if is_newer(row) or is_cron(row) else "lacks what a cron needs, or has it with another type"


def why_no_limit(raw: bytes) -> str | None:
    number = (int, float)
    if (why := _fields(rate=number, period_s=number, burst=number, concurrency=number)(raw)) is not None:
        return why
    row = cast("dict[str, Any]", orjson.loads(raw)) if len(raw) < MOST_BYTES else {}
    return (
        "has a rate or a period without the other"
        if (row.get("rate") is None) != (row.get("period_s") is None)
        else None
    )


def _why_no_set_limit(raw: bytes) -> str | None:
    return None if raw == b"null" else why_no_limit(raw)


def why_no_outcome(raw: bytes) -> str | None:
    if len(raw) >= MOST_BYTES:
        return why_no_object(raw)
    try:
        outcome.decode(raw)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is not an outcome"
    return None


def why_no_packed_job(raw: bytes) -> str | None:
    """Why this is not the beginning of a packed job."""
    head = _HEAD.match(raw)
    if head is None or len(head[1]) > 9:
        return "is not a packed job"
    meta = raw[head.end() : head.end() + int(head[1])]
    if len(meta) < int(head[1]):
        return None if len(raw) >= MOST_BYTES else "is not a packed job"
    return why_no_meta(meta)


def why_no_meta(raw: bytes) -> str | None:
    try:
        record = decode_meta(raw).outcome
        if record is not None:
            outcome.from_dict(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "has a meta that can't be read"
    return None


def _why_not_held(raw: bytes) -> str | None:
    """A job id and a nonce."""
    return why_no_text(raw) or why_no_job_id(raw.partition(b" ")[0])


def _form(pattern: re.Pattern[bytes], what: str) -> Check:
    return lambda raw: None if pattern.fullmatch(raw) else f"is not {what}"


_ROWS: Mapping[str, tuple[Check, Check]] = MappingProxyType(
    {
        "where": (why_no_job_id, _form(_PLACE, "LANE ENTRY_ID")),
        "delayed_jobs": (why_no_job_id, why_no_packed_job),
        "dead_jobs": (why_no_job_id, why_no_packed_job),
        "waiters": (why_no_job_id, why_no_text),
        "notes": (why_no_job_id, why_no_object),
        "cancel": (why_no_job_id, why_no_number),
        "tasks": (why_no_text, _fields(kind=str, event=str, signature=str, options=dict, owner=str)),
        "seen": (why_no_text, why_no_number),
        "announcers": (why_no_text, _fields(service=str)),
        "limits": (why_no_text, why_no_limit),
        "limits_set": (why_no_text, _why_no_set_limit),
        "gcra": (why_no_text, why_no_number),
        "lingering": (why_no_text, why_no_number),
        "large": (why_no_text, why_no_number),
        "consumers": (why_no_text, _fields(daemon=str, tasks=list, since_ms=int)),
        "daemon_prefix": (why_no_text, _nothing),
        "leader": (why_no_text, why_no_text),
        "crons": (why_no_text, why_no_cron),
        "lapsed": (why_no_text, why_no_object),
        "cursors": (why_no_text, why_no_number),
        "fired": (why_no_text, why_no_number),
        "event_prefix": (why_no_text, why_no_number),
        "stats": (why_no_text, why_no_number),
        "rate_prefix": (why_no_text, why_no_number),
        "aside": (why_no_text, why_no_object),
        "schedules": (why_no_text, why_no_object),
        "schedules_arguments": (why_no_text, why_no_object),
        "schedules_state": (why_no_text, why_no_number),
    }
)
"""By the hash: the checks of a row's field and of its value. Of a key that is not here, only the names of its rows are looked at."""

_TEXTS: Mapping[str, Check] = MappingProxyType(
    {
        "epoch": _form(re.compile(rb"[\w.:-]+"), "the name of a data set"),
        "schema": _form(re.compile(rb"\d+"), "a number"),
        "seq": _form(re.compile(rb"\d+"), "a number"),
        "result_prefix": why_no_outcome,
        "cache_prefix": why_no_outcome,
        "dead_bytes": _form(_BYTES, "COUNT BYTES"),
        "idem_prefix": _why_not_held,
        "sent_prefix": _why_not_held,
        "watched": _nothing,
    }
)
"""By the string: the check of what it holds; of one that is not here, anything will do."""

CHECKED = frozenset({*_ROWS, *_TEXTS})
"""Keys whose values are looked at."""

OF_JOBS = frozenset({"delayed", "dead"})
PARTNERS: Mapping[str, str] = MappingProxyType(
    {"delayed": "delayed_jobs", "delayed_jobs": "delayed", "dead": "dead_jobs", "dead_jobs": "dead"}
)
"""Keys that have a row for each row of the other."""


def attribute_of(row: Key) -> str:
    return next(attribute for attribute, one in ROWS.items() if one is row)


def why_bad_text(attribute: str, raw: bytes) -> str | None:
    """What is wrong with a string of the map; None: nothing."""
    return _TEXTS.get(attribute, _nothing)(raw)


def why_bad_row(attribute: str, field: bytes, value: bytes) -> str | None:
    """What is wrong with a row of a hash; None: nothing."""
    check_field, check_value = _ROWS.get(attribute, (why_no_text, _nothing))
    if attribute == "daemon_prefix":
        check_value = why_no_number if field == b"seen_ms" else why_no_object
    if (why := check_field(field)) is not None:
        return f"its name {why}"
    why = check_value(value)
    return None if why is None else f"it {why}"


def why_bad_member(attribute: str, member: bytes, score: bytes | None) -> str | None:
    """What is wrong with a member of a set, or of a sorted set with its score; None: nothing."""
    check = why_no_job_id if attribute in OF_JOBS else why_no_text
    if (why := check(member)) is not None:
        return f"its name {why}"
    if score is None:
        return None
    at_ms = float(score) / (1000 if attribute == "delayed" else 1)
    return None if math.isfinite(at_ms) and 0 <= at_ms < LATEST_MS else "its score is not a time"


def why_bad_entry(first: bytes, meta: bytes | None) -> str | None:
    """What is wrong with an entry of a lane; None: nothing."""
    schema = _ENTRY.fullmatch(first)
    if schema is None:
        return f"it has no field p{SCHEMA}"
    if int(schema[1]) > SCHEMA or meta is None:
        return None
    why = why_no_meta(meta)
    return None if why is None else f"it {why}"


def why_bad_note(attribute: str, first: bytes, value: bytes) -> str | None:
    """What is wrong with an entry of the ends, the audit or the activity; None: nothing."""
    if attribute in ("audit", "activity"):
        why = why_no_object(value) if first == b"e" else "has no field e"
    else:
        why = why_no_text(value) if first == b"j" else "has no field j"
    return None if why is None else f"it {why}"


def aside_row(raw: bytes) -> dict[str, Any]:
    """What `P:aside` has of a key, as far as it can be read."""
    return cast("dict[str, Any]", orjson.loads(raw)) if why_no_object(raw) is None and len(raw) < MOST_BYTES else {}
