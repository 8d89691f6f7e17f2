"""Rows of shared keys as they come in replies: each is read by itself, and one that can't be read is None."""

from __future__ import annotations

from collections.abc import Sequence
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
