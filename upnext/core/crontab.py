"""Reads the fields of a cron as crontab(5) does, and says in one line what is wrong with one.

Two rules are crontab(5)'s own. Of the day fields, month day and weekday: where either begins with `*`, a day has to match both (`*/2` on
Mondays are the odd Mondays); else it has to match one. A range goes upwards, and a step is no longer than its field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from upnext.errors import UsageError

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = {
    name: at
    for at, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_WEEKDAYS = {name: at for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_ITEM = re.compile(r"(?P<low>[^-/]+)(-(?P<high>[^-/]+))?(/(?P<step>[^-/]+))?\Z")
_HASHED = re.compile(r"[hr](\(.*\))?(/.*)?\Z")
_NTH_WEEKDAY = re.compile(r"(l(?P<last>[^#]+)|(?P<day>[^#]+)#[1-5]|(?P<ends>[^#]+)l)\Z")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]


_FIELDS = (
    _Field("second", 0, 59, {}),
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("month day", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Fields:
    """`both_days`: a day has to match month day and weekday, not one of them."""

    text: str
    both_days: bool


def read(schedule: str) -> Fields:
    """Raises UsageError naming the field, what stands there and what may."""
    name = schedule.strip().lower()
    if name.startswith("@") and name not in _ALIASES:
        every = "; for a period write a step, as in '*/5 * * * *'" if name.startswith("@every") else ""
        raise UsageError(f"cron {schedule!r}: there is no {name.split()[0]}, but {', '.join(_ALIASES)}{every}")
    fields = _ALIASES.get(name, name).split()
    if len(fields) not in {5, 6}:
        raise UsageError(
            f"cron {schedule!r}: it has {len(fields)} fields; write 5 (minute hour day month weekday), or 6 with seconds first"
        )
    for field, text in zip(_FIELDS[-len(fields) :], fields, strict=True):
        for item in text.split(","):
            why = _wrong(field, item)
            if why is not None:
                raise UsageError(f"cron {schedule!r}: {why}")
    both = fields[-3][0] in "*?" or fields[-1][0] in "*?"
    plain = [_plain(field, text) for field, text in zip(_FIELDS[-len(fields) :], fields, strict=True)]
    if not both and "*" in {plain[-3], plain[-1]}:
        plain[-3] = plain[-1] = "*"  # one of them always matches
    return Fields(" ".join(plain), both)


def _plain(field: _Field, text: str) -> str:
    """A field as a list of numbers, or `*`: no ranges and steps are left to read in another way."""
    values: set[int] = set()
    others: list[str] = []
    for item in text.split(","):
        parts = _ITEM.match(item)
        if parts is None or not (parts["low"] in {"*", "?"} or _number(field, parts["low"]) is not None):
            others.append(item)  # of the kinds that croniter has beyond crontab(5): l, 5#2, l5
            continue
        begin, end = field.low, field.high
        if parts["low"] not in {"*", "?"}:
            begin = _number(field, parts["low"]) or 0
            if not parts["step"]:
                end = begin
            if parts["high"]:
                end = _number(field, parts["high"], ends=True) or 0
        values.update(range(begin, end + 1, int(parts["step"] or 1)))
    if field.name == "weekday":
        values = {day % 7 for day in values}
    if len(values) == field.high - field.low + (field.name != "weekday"):
        return "*"
    return ",".join([*map(str, sorted(values)), *others])


def _wrong(field: _Field, item: str) -> str | None:
    """What is wrong with one part of a list."""
    if _HASHED.match(item):
        return f"{field.name} {item}: hashed and random fields (H, R) are not supported"
    if field.name == "month day" and item == "l":
        return None
    nth = _NTH_WEEKDAY.match(item) if field.name == "weekday" else None
    if nth is not None and _number(field, nth["last"] or nth["day"] or nth["ends"]) is not None:
        return None
    parts = _ITEM.match(item)
    if parts is None:
        return f"{field.name} {item or 'is empty'}: {_span(field)}"
    low, high, step = parts["low"], parts["high"], parts["step"]
    if low == "*" or (low == "?" and "day" in field.name):
        if high is not None:
            return f"{field.name} {item}: {_span(field)}"
    else:
        begin, end = _number(field, low), None if high is None else _number(field, high, ends=True)
        if begin is None or (high is not None and end is None):
            return f"{field.name} {low if begin is None else high}: {_span(field)}"
        if end is not None and end < begin:
            return f"{field.name} {item}: the range ends before it begins"
    if step is not None and not (_is_digits(step) and 1 <= int(step) <= field.high):
        return f"{field.name} {item}: a step is 1–{field.high}"
    return None


def _number(field: _Field, text: str, *, ends: bool = False) -> int | None:
    """`ends`: at the end of a range sun is the day after sat."""
    if text in field.names:
        return 7 if ends and text == "sun" else field.names[text]
    if not _is_digits(text) or not field.low <= int(text) <= field.high:
        return None
    return int(text)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


def _span(field: _Field) -> str:
    names = f", or {next(iter(field.names))} to {[*field.names][-1]}" if field.names else ""
    return f"{field.low}–{field.high}{names}"
