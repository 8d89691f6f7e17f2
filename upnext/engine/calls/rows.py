"""Rows of shared keys as they come in replies: each is read by itself, and one that can't be read is None and named once in the log.

Rows are wrong when they come from other versions, from hands, or from half-restored dumps: one must harm itself alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

import orjson


def pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    """`[a, 1, b, 2]`, as HGETALL and ZRANGE WITHSCORES answer -> (a, 1), (b, 2)."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def readable(raw: bytes) -> dict[str, Any] | None:
    """A row's JSON object; None for a row that is something else."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", row) if isinstance(row, dict) else None


def lenient(raw: bytes) -> str:
    """A name as it is shown: bytes that are no UTF-8 are escaped."""
    return raw.decode("utf-8", "backslashreplace")


log = logging.getLogger("upnext.engine")

_MOST_NAMED = 1000
_named: set[tuple[str, bytes]] = set()


def bad_row(key: str, field: bytes, why: str, remove: str) -> None:
    """Name a row that is passed over, once in the life of this process. `remove`: the command that removes a field of such a key."""
    if (key, field) in _named:
        return
    if len(_named) < _MOST_NAMED:
        _named.add((key, field))
    shown = lenient(field[:200])
    log.error("a row of %s is passed over: field %r %s; remove it with %s %s FIELD", key, shown, why, remove, key)


def name(raw: bytes | str, key: str, remove: str = "HDEL") -> str | None:
    """A name that stands in a shared key; None, and a line in the log, for bytes that are not text."""
    try:
        return raw if isinstance(raw, str) else raw.decode()
    except UnicodeDecodeError:
        assert isinstance(raw, bytes)
        bad_row(key, raw, "is not UTF-8", remove)
        return None


def names(found: Iterable[bytes | str], key: str, remove: str = "HDEL") -> list[str]:
    """Those of the names in a shared key that are text."""
    return [one for raw in found if (one := name(raw, key, remove)) is not None]
