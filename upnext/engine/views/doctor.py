"""Looks at every key of a namespace and names the rows and keys that can't be read; removes them when asked to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from upnext.core import checkup
from upnext.core.checkup import PARTNERS, attribute_of
from upnext.core.keys import ROWS, SCHEMA, Key, Keys, row_of
from upnext.engine.calls import checkup as calls
from upnext.engine.redis.scripts import Arg, Call

T = TypeVar("T")

SCAN_KEYS = 1000
_TEXTS = 100
_AS_A_WHOLE = ("string", "list")
"""Types of keys that are looked at as a whole; of a list only its type."""
_REMOVE = {"hash": "HDEL", "zset": "ZREM", "set": "SREM", "stream": "XDEL"}


class Transport(Protocol):
    """Runs calls and plain commands one after the other."""

    def run(self, call: Call[T], /) -> T: ...
    def command(self, *command: Arg) -> Any: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that can't be read; `field` None: the whole key. `kind` is the type that the key has."""

    key: str
    field: bytes | None
    why: str
    kind: str
    value: bytes = b""
    partner: str = ""

    @property
    def command(self) -> tuple[str | bytes, ...]:
        """What removes it, without looking whether it has changed."""
        if self.field is None:
            return ("UNLINK", self.key)
        return (_REMOVE[self.kind], self.key, self.field)


def is_newer(transport: Transport, keys: Keys) -> bool:
    """Whether a newer version uses this namespace: what can't be read may be its own."""
    [(_, raw)] = transport.run(calls.read_texts([keys.schema]))
    return isinstance(raw, bytes) and raw.isdigit() and int(raw[:18]) > SCHEMA


def examine(transport: Transport, keys: Keys) -> Iterator[Finding]:
    """All that is wrong, in bounded steps: the keys with fixed names first, then the others as they are found."""
    texts: list[str] = []
    for row in ROWS.values():
        if row.variable or row.type == "channel":
            continue
        name = keys.prefix + row.name
        if row.type in _AS_A_WHOLE:
            texts.append(name)
        else:
            yield from _of_key(transport, keys, name, row)
    yield from _of_texts(transport, keys, texts)
    yield from _variable(transport, keys)


def remove(transport: Transport, keys: Keys, finding: Finding) -> bool:
    """-> whether it was removed; False when it has changed meanwhile."""
    if finding.kind == "any":
        return transport.command("UNLINK", finding.key.encode("utf-8", "surrogateescape")) == 1
    return transport.run(
        calls.remove_bad(keys, finding.key, finding.partner or finding.key, finding.kind, finding.field, finding.value)
    )


def _variable(transport: Transport, keys: Keys) -> Iterator[Finding]:
    cursor = b"0"
    pattern = keys.prefix.translate({ord(one): f"\\{one}" for one in "\\*?[]"}) + "*"
    while True:
        cursor, found = transport.command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
        texts: list[str] = []
        for raw in found:
            name = raw.decode("utf-8", "surrogateescape")
            if checkup.why_no_text(raw) is not None:
                yield Finding(name, None, "its name is not UTF-8", "any")
                continue
            row = row_of(name.removeprefix(keys.prefix))
            if row is None or not row.variable or row.type == "any":
                continue  # one of a newer version, or seen already
            if row.type in _AS_A_WHOLE:
                texts.append(name)
            else:
                yield from _of_key(transport, keys, name, row)
        yield from _of_texts(transport, keys, texts)
        if cursor == b"0":
            return


def _wrong_type(key: str, row: Key, found: str) -> Finding | None:
    if found in ("none", row.type):
        return None
    return Finding(key, None, f"holds a {found}, not a {row.type}", found)


def _of_key(transport: Transport, keys: Keys, key: str, row: Key) -> Iterator[Finding]:
    if row.type == "stream":
        yield from _of_stream(transport, key, row)
        return
    attribute = attribute_of(row)
    partner = getattr(keys, PARTNERS[attribute]) if attribute in PARTNERS else key
    cursor, count = "0", 20
    while True:
        part = transport.run(calls.read_rows(key, partner, row.type, cursor, count))
        if (wrong := _wrong_type(key, row, part.found)) is not None:
            yield wrong
        for one in part.rows:
            why = _why(attribute, row, one)
            if why is not None:
                yield Finding(key, one.field, why, row.type, one.value, partner)
            elif attribute == "aside":
                yield _set_aside(transport, one)
        cursor, count = part.cursor, calls.next_count(count, part)
        if cursor == "0":
            return


def _why(attribute: str, row: Key, one: calls.RawRow) -> str | None:
    if one.field_bytes > len(one.field):
        return f"its name has {one.field_bytes} bytes"
    if row.type == "hash":
        why = checkup.why_bad_row(attribute, one.field, one.value)
    else:
        why = checkup.why_bad_member(attribute, one.field, one.value if row.type == "zset" else None)
    if why is None and one.alone:
        return f"{PARTNERS[attribute].replace('_', ':')} has no row of it"
    return why


def _set_aside(transport: Transport, one: calls.RawRow) -> Finding:
    name = one.field.decode()
    row = checkup.aside_row(one.value)
    [(found, _)] = transport.run(calls.read_texts([name]))
    return Finding(name, None, f"was set aside: {row.get('key')} {row.get('why')}", found)


def _of_texts(transport: Transport, keys: Keys, names: Iterable[str]) -> Iterator[Finding]:
    left = list(names)
    while left:
        found = transport.run(calls.read_texts(left[:_TEXTS]))
        for key, (kind, raw) in zip(left, found, strict=False):
            row = row_of(key.removeprefix(keys.prefix))
            assert row is not None
            if (wrong := _wrong_type(key, row, kind)) is not None:
                yield wrong
            elif kind == "string" and isinstance(raw, bytes):
                why = checkup.why_bad_text(attribute_of(row), raw)
                if why is not None:
                    yield Finding(key, None, f"it {why}", kind, raw)
        left = left[len(found) :]


def _of_stream(transport: Transport, key: str, row: Key) -> Iterator[Finding]:
    attribute, after = attribute_of(row), ""
    while True:
        found, after, entries = transport.run(calls.read_entries(key, after))
        if (wrong := _wrong_type(key, row, found)) is not None:
            yield wrong
        for one in entries:
            if attribute == "stream_prefix":
                why = checkup.why_bad_entry(one.first, one.meta)
            else:
                why = checkup.why_bad_note(attribute, one.first, one.value)
            if why is not None:
                yield Finding(key, one.entry_id.encode(), why, "stream")
        if not after:
            return
