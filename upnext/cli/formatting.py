"""Numbers and times as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_STEPS = (("d", 86400), ("h", 3600), ("m", 60))
_SIZES = ("B", "K", "M", "G", "T")


def duration(seconds: float | None) -> str | None:
    """0.25 -> `250ms`, 3.2 -> `3.2s`, 75 -> `1m15s`, 90000 -> `1d1h`."""
    if seconds is None:
        return None
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    left = round(seconds)
    parts: list[str] = []
    for letter, size in (*_STEPS, ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{letter}")
            left %= size
    return "".join(parts[:2])


def size(count_bytes: int | None) -> str | None:
    """1536 -> `1.5K`."""
    if count_bytes is None:
        return None
    value = float(count_bytes)
    for unit in _SIZES:
        if value < 1024 or unit == _SIZES[-1]:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def iso(ms: int | None) -> str | None:
    """Unix ms -> ISO 8601 in UTC with milliseconds: `2026-01-01T00:00:00.123Z`."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{ms % 1000:03d}Z"


def exit_text(last: Mapping[str, Any] | None) -> str | None:
    """`last_exit` of a slot -> `signal SIGKILL at 2026-01-01T00:00:00Z`."""
    if not last:
        return None
    what = last.get("signal") or (f"code {last['code']}" if last.get("code") is not None else "")
    return " ".join(str(part) for part in (last.get("cause"), what, "at", last.get("at")) if part)
