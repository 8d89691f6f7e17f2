"""Numbers, times and texts as people read them on a page. Pure; each filter gives text or escaped markup."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
TEXT_CAP = 2_000


def number(value: float | None) -> Markup | str:
    """1234567 -> `1.23M`, exact on hover; None -> a dash."""
    if value is None:
        return "–"
    for size, letter in _STEPS:
        if abs(value) >= 10_000 and abs(value) >= size:
            return Markup('<span title="{:,}">{:.3g}{}</span>').format(value, value / size, letter)
    return f"{value:,.3g}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"


def size(value: int | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "–"
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float | None) -> str:
    """0.0042 -> `4.2 ms`, 75 -> `1 min 15 s`."""
    if seconds is None:
        return "–"
    if seconds < 0:
        return "–" + duration(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    for at, (length, unit) in enumerate(_UNITS):
        if whole >= length:
            rest = whole % length
            smaller, small_unit = _UNITS[at + 1] if at + 1 < len(_UNITS) else (1, "s")
            return (
                f"{whole // length} {unit} {rest // smaller} {small_unit}"
                if rest >= smaller
                else f"{whole // length} {unit}"
            )
    return f"{whole} s"


def when(at_ms: float | None) -> Markup | str:
    """A moment (Unix ms): the exact UTC time in markup that the page's module turns into a relative one in the viewer's zone."""
    if at_ms is None:
        return "–"
    try:
        exact = datetime.fromtimestamp(at_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return "–"
    text = exact.strftime("%Y-%m-%d %H:%M:%S")
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        exact.isoformat(timespec="milliseconds"), text, text
    )


def newest(values: Sequence[float | None]) -> float | None:
    """The last that is known."""
    return next((value for value in reversed(values) if value is not None), None)


def shown(text: Any, cap: int = TEXT_CAP) -> str:
    """Text of users: control and direction characters are made visible, the rest is cut at `cap` characters."""
    raw = str(text)
    cut = raw[:cap] + (f"… ({len(raw) - cap:,} more characters)" if len(raw) > cap else "")
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co") else f"\\u{ord(char):04x}"
        for char in cut
    )


FILTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"number": number, "size": size, "duration": duration, "when": when, "shown": shown, "newest": newest}
)
