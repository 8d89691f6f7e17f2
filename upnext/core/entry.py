"""What a stream entry holds, and the packed form of a job outside a stream.

An entry is the job: field `p1` is the payload (the arguments, JSON; the digit is the schema number), field `m`, present only when it
says something, is a JSON object of one-letter keys:

| key | type | meaning | absent means |
|---|---|---|---|
| i | str | job id, of a job that moved | id is made from task, lane and entry id |
| l | str | own lane letter (`n`, `h`), in lanes back and suspect | this lane |
| a | int | number of this attempt, from 1 | 1 |
| c | int | crashes charged so far | 0 |
| h | int | hosts lost so far | 0 |
| b | int | 1: was handed back once because it waited unstarted | 0 |
| s | int | 1: one of several suspects of a crash | 0 |
| d | str | the crash whose suspect it is, until it has run alone | none |
| p, r | str | parent and root job ids | it has no parent |
| k | str | idempotency key | none |
| w | str | channel of a waiter | no client waits |
| q | int | expires at, server ms, unless it has started; gone after its first start | never |
| t | int | the tick of a cron, ms | not from a cron |
| o | str | W3C traceparent | none |
| x | str | cause of the latest crash | it never crashed a worker |
| g | str | of a dead letter: its group, see `upnext.core.end_groups` | it was written by an older version |
| n | int | 1: `P:notes` has its checkpoint or progress | it has none, or this is not its first attempt |

Outside a stream (delayed, dead) a job is packed as `LANE LENGTH:META PAYLOAD` without the spaces, LENGTH counting META's bytes;
a dead job's META has `z`, its outcome (see `upnext.core.outcome`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import orjson

from upnext.core import ids
from upnext.core.keys import SCHEMA

PAYLOAD_FIELD = f"p{SCHEMA}"
META_FIELD = "m"


@dataclass(slots=True)
class Meta:
    """Field `m` of an entry, by name. Units: ms are server time."""

    job_id: str | None = None
    lane: str | None = None
    attempt: int = 1
    crashes: int = 0
    lost_hosts: int = 0
    handed_back: bool = False
    suspect: bool = False
    suspect_of: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    idempotency_key: str | None = None
    reply_to: str | None = None
    expires_ms: int | None = None
    tick_ms: int | None = None
    trace: str | None = None
    cause: str | None = None
    noted: bool = False
    own: dict[str, Any] | None = None
    """What this job has in place of its task's: see `upnext.core.own_options`."""
    group: str | None = None
    """Of a dead letter: the group of its end."""
    outcome: dict[str, Any] | None = None


_LETTERS = {
    "job_id": "i",
    "lane": "l",
    "attempt": "a",
    "crashes": "c",
    "lost_hosts": "h",
    "handed_back": "b",
    "suspect": "s",
    "suspect_of": "d",
    "parent_id": "p",
    "root_id": "r",
    "idempotency_key": "k",
    "reply_to": "w",
    "expires_ms": "q",
    "tick_ms": "t",
    "trace": "o",
    "cause": "x",
    "noted": "n",
    "own": "u",
    "group": "g",
    "outcome": "z",
}
_DEFAULTS = {name: getattr(Meta(), name) for name in _LETTERS}
_FLAGS = {"handed_back", "suspect", "noted"}
_NUMBERS = {"attempt", "crashes", "lost_hosts", "expires_ms", "tick_ms", *_FLAGS}
_FIELDS: dict[str, tuple[str, type]] = {
    letter: (name, int if name in _NUMBERS else dict if name in ("outcome", "own") else str)
    for name, letter in _LETTERS.items()
}


def encode_meta(meta: Meta) -> bytes:
    """Only what differs from the default; b"" when nothing does."""
    record: dict[str, Any] = {}
    for name, letter in _LETTERS.items():
        value = getattr(meta, name)
        if value != _DEFAULTS[name]:
            record[letter] = int(value) if name in _FLAGS else value
    return orjson.dumps(record) if record else b""


def decode_meta(raw: bytes | None) -> Meta:
    """Raises ValueError for bytes that are not a JSON object, or for a value of the wrong type; newer letters are passed over."""
    if not raw:
        return Meta()
    record = orjson.loads(raw)
    if not isinstance(record, dict):
        raise ValueError("meta is not a JSON object")
    meta = Meta()
    for letter, value in cast("dict[str, Any]", record).items():
        known = _FIELDS.get(letter)
        if known is not None:
            name, kind = known
            if type(value) is not kind:
                raise ValueError(f"meta has a {type(value).__name__} for {letter!r} ({name})")
            setattr(meta, name, bool(value) if name in _FLAGS else value)
    if meta.job_id is not None and not ids.is_id(meta.job_id):
        raise ValueError(f"{meta.job_id!r} is not a job id")
    return meta


def pack(lane: str, meta: bytes, payload: bytes) -> bytes:
    return b"%s%d:%s%s" % (lane.encode(), len(meta), meta, payload)


def unpack(packed: bytes) -> tuple[str, Meta, bytes]:
    """-> (lane letter, meta, payload). Raises ValueError for anything that `pack` did not make."""
    head, colon, rest = packed[1:].partition(b":")
    if not colon or not head.isdigit() or len(rest) < int(head):
        raise ValueError("not a packed job")
    size = int(head)
    return packed[:1].decode(), decode_meta(rest[:size]), rest[size:]
