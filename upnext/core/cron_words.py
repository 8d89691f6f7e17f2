"""What a cron says, in words: `every day at 09:00`. Only where words say all of it; else "", and people read the expression."""

from __future__ import annotations

from upnext.core import crontab
from upnext.errors import UsageError

_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MOST_TIMES = 4
"""More moments of a day than these are not listed."""


def words(schedule: str) -> str:
    """Of an expression as `Worker.cron` takes it; "" for one that has no short words, or is none."""
    try:
        fields = crontab.read(schedule).text.lower().split()
    except UsageError:
        return ""
    second, minute, hour, day, month, weekday = ["0", *fields] if len(fields) == 5 else fields
    times = _times(second, minute, hour)
    days = _days(day, month, weekday)
    if not times or days is None:
        return ""
    if times.startswith("at "):
        return f"{days or 'every day'} {times}"
    return f"{times}, {days}" if days else times


def _times(second: str, minute: str, hour: str) -> str:
    """`at 09:00`, `every 5 minutes`."""
    if (minute, hour) == ("*", "*") and second != "0":
        return _every(second, "second")
    seconds = _numbers(second)
    if seconds is None or len(seconds) != 1:
        return ""
    past = f":{seconds[0]:02}" if seconds[0] else ""
    minutes, hours = _numbers(minute), _numbers(hour)
    if hour == "*" and not past and (every := _every(minute, "minute")):
        return every
    if minutes is None or len(minutes) > _MOST_TIMES:
        return ""
    if every := _every(hour, "hour"):
        return every if minutes == [0] and not past else f"{every} at {_and([f':{one:02}{past}' for one in minutes])}"
    if hours is None or len(minutes) * len(hours) > _MOST_TIMES:
        return ""
    return "at " + _and([f"{at:02}:{one:02}{past}" for at in hours for one in minutes])


def _every(text: str, unit: str) -> str:
    """`*` and every n-th, where n divides the unit's round: else the last step is shorter."""
    if text == "*":
        return f"every {unit}"
    numbers, whole = _numbers(text), {"second": 60, "minute": 60, "hour": 24}[unit]
    if numbers is None or len(numbers) < 3 or whole % len(numbers):
        return ""
    step = whole // len(numbers)
    if numbers != list(range(0, whole, step)):
        return ""
    return f"every {step} {unit}s" if step > 1 else f"every {unit}"


def _days(day: str, month: str, weekday: str) -> str | None:
    """`Monday to Friday`, `on day 1 of each month`; "" for every day, None where there are no short words."""
    if day != "*" and weekday != "*":
        return None
    parts: list[str] = []
    if weekday != "*":
        named = _named(weekday, _DAYS, 0)
        if named is None:
            return None
        parts.append(named)
    if day != "*":
        days = _numbers(day)
        if days is None or len(days) > _MOST_TIMES:
            return None
        parts.append(f"on day{'s' if len(days) > 1 else ''} {_and([str(one) for one in days])}")
        if month == "*":
            parts[-1] += " of each month"
    if month != "*":
        named = _named(month, _MONTHS, 1)
        if named is None:
            return None
        parts.append(f"{'of' if day != '*' else 'in'} {named}")
    return " ".join(parts)


def _named(text: str, names: tuple[str, ...], first: int) -> str | None:
    """`1,2,3` -> names, `Monday to Wednesday`; Sunday is last."""
    numbers = _numbers(text)
    if numbers is None:
        return None
    days = len(names) == len(_DAYS)
    places = sorted({(one - first - days) % len(names) for one in numbers})
    known = [names[(place + days) % len(names)] for place in places]
    if len(known) > 2 and places[-1] - places[0] == len(places) - 1:
        return f"{known[0]} to {known[-1]}"
    return _and(known) if len(known) <= _MOST_TIMES else None


def _numbers(text: str) -> list[int] | None:
    """`0,30`; None for anything else. The expression is read already: lists are written out, and their numbers fit."""
    parts = text.split(",")
    return sorted({int(part) for part in parts}) if all(part.isdecimal() for part in parts) else None


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
