"""Calls of `upnext doctor`: read_rows, read_texts, read_entries, remove_bad. Each reads a bounded part, whatever it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upnext.core.checkup import MOST_BYTES
from upnext.core.keys import Keys
from upnext.engine.redis.scripts import Call, script

PART_BYTES = 256 << 10
"""About what one call reads."""
MOST_ROWS = 500
MOST_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands; `value` is a score's text in a sorted set. `alone`: the other key of the pair has no row of it."""

    field: bytes
    value: bytes
    field_bytes: int
    value_bytes: int
    alone: bool


@dataclass(frozen=True, slots=True)
class RowsPart:
    """`found` is the key's type; with another one there are no rows. `cursor` "0": that was all."""

    found: str
    cursor: str = "0"
    bytes_read: int = 0
    rows: tuple[RawRow, ...] = ()


def read_rows(key: str, partner: str, kind: str, cursor: str, count: int) -> Call[RowsPart]:
    def parse(reply: list[Any]) -> RowsPart:
        if len(reply) == 1:
            return RowsPart(reply[0].decode())
        found, cursor, read, *flat = reply
        rows = [RawRow(*flat[at : at + 4], alone=flat[at + 4] == 0) for at in range(0, len(flat), 5)]
        return RowsPart(found.decode(), cursor.decode(), read, tuple(rows))

    return Call(script("read_rows"), [key, partner], [kind, cursor, count, MOST_BYTES], parse)


def next_count(count: int, part: RowsPart) -> int:
    """How many rows to read next, so that they are about PART_BYTES."""
    wanted = count * PART_BYTES // max(1, part.bytes_read)
    return max(1, min(MOST_ROWS, 4 * count, wanted))


def read_texts(keys: Sequence[str]) -> Call[list[tuple[str, bytes | int]]]:
    """-> of the first keys (at least one): the type, and the text or its length where it is longer than MOST_BYTES."""

    def parse(reply: list[Any]) -> list[tuple[str, bytes | int]]:
        return [(reply[at].decode(), reply[at + 1]) for at in range(1, len(reply), 2)]

    return Call(script("read_texts"), list(keys), [MOST_BYTES, PART_BYTES], parse)


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry of a stream. `value` is that of the first field, b"" for a payload."""

    entry_id: str
    first: bytes
    value: bytes
    meta: bytes | None


def read_entries(key: str, after: str) -> Call[tuple[str, str, list[RawEntry]]]:
    """-> (type found, where to go on: "" at the end, entries)."""

    def parse(reply: list[Any]) -> tuple[str, str, list[RawEntry]]:
        if len(reply) == 1:
            return reply[0].decode(), "", []
        entries = [RawEntry(reply[at].decode(), *reply[at + 1 : at + 4]) for at in range(2, len(reply), 4)]
        return reply[0].decode(), reply[1].decode(), entries

    return Call(script("read_entries"), [key], [after, MOST_ENTRIES, PART_BYTES, MOST_BYTES], parse)


def remove_bad(keys: Keys, key: str, partner: str, kind: str, field: bytes | None, value: bytes) -> Call[bool]:
    """Remove a row (field None: the whole key) while it is what was read. `value`: as far as it was read; b"": it has none."""
    sha = hashlib.sha1(value, usedforsecurity=False).hexdigest() if value or field is not None else ""
    shown: bytes | str = value if kind == "zset" and field is not None else sha
    return Call(
        script("remove_bad"),
        [key, partner, keys.aside],
        [kind, "row" if field is not None else "key", field or b"", shown, MOST_BYTES],
        bool,
    )
