"""Rate limits: how one is written, and the GCRA that grants permits. `engine/lua/include/gcra.lua` does the same sum, and a
test compares the two.

Starts are spread evenly over the period. Only fast limits may bunch, up to a fiftieth of their count at once, so that one fetch can take
several jobs, and what a bunch may take at once is taken off the even rate: no window of a period, wherever it begins, sees more than the
count. A `burst` of one's own is on top of the rate instead.
"""

from __future__ import annotations

import re

from upnext.core.spec import RateLimit
from upnext.errors import UsageError

_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{0,9})\s*([a-z]+)\s*", re.IGNORECASE)
_UNITS_S = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_MAX_PERIOD_S = 366 * 86400
_MAX_PER_S = 100_000

LATE_US = 10_000


def parse_rate(text: str) -> RateLimit:
    """ "10/minute", "100/s", "5/2h" -> RateLimit. Raises UsageError that shows how to write one."""
    match = _RATE.fullmatch(text)
    unit_s = _UNITS_S.get(match[3].lower()) if match else None
    if match is None or unit_s is None:
        raise UsageError(f"rate limit {text!r}: write a count, a slash and a period, like 10/minute, 100/s or 5/2h")
    return checked(RateLimit(int(match[1]), float(int(match[2] or 1) * unit_s)), repr(text))


def checked(limit: RateLimit, shown: str) -> RateLimit:
    """The limit, `shown` in messages. Raises UsageError for one that can't be kept."""
    if limit.count < 1 or not limit.period_s > 0:
        raise UsageError(f"rate limit {shown}: the count and the period are at least 1 (to stop a task, pause it)")
    if limit.burst is not None and not 1 <= limit.burst <= limit.count:
        raise UsageError(f"rate limit {shown}: the burst is at least 1 and at most the count")
    if limit.period_s > _MAX_PERIOD_S:
        raise UsageError(f"rate limit {shown}: a period is at most 366 days")
    if limit.count > _MAX_PER_S * limit.period_s:
        raise UsageError(f"rate limit {shown}: at most {_MAX_PER_S} a second; without a limit a task is faster")
    return limit


def interval_us(limit: RateLimit) -> int:
    """Microseconds from one start to the next, rounded up.

    A window holds a bunch and one start for each interval that begins in it, the slack included: together at most the count.
    """
    period_us = round(limit.period_s * 1_000_000)
    if limit.burst is not None:
        return max(1, -(-period_us // limit.count))
    return max(1, -(-(period_us + slack_us(limit)) // _steps(limit)))


def burst(limit: RateLimit) -> int:
    """How many may start at once after a lull."""
    return limit.burst if limit.burst is not None else max(1, limit.count // 50)


def slack_us(limit: RateLimit) -> int:
    """So late may a start be without delaying the next: askers are woken some ms after a permit is free, and that must not add up."""
    return min(LATE_US, round(limit.period_s * 1_000_000) // _steps(limit) // 20)


def _steps(limit: RateLimit) -> int:
    """Intervals of a period, after a bunch."""
    return max(1, limit.count - burst(limit) + 1)


def gcra(tat_us: int, now_us: int, limit: RateLimit, want: int) -> tuple[int, int, int]:
    """Asks for `want` permits. -> (granted, the new theoretical arrival time, ms until one more is granted).

    `tat_us` is the time of the last answer (0: none), to be kept by the caller. Times are microseconds of the server's clock.
    A `tat_us` further ahead than this limit can have made, of a slower limit or another clock, is brought back.
    """
    step, most = interval_us(limit), burst(limit)
    tolerance = (most - 1) * step
    tat = now_us if tat_us < now_us - slack_us(limit) else min(tat_us, now_us + most * step)
    free = (now_us + tolerance - tat) // step + 1
    granted = max(0, min(want, free))
    tat += granted * step
    wait_us = max(0, tat - tolerance - now_us)
    return granted, tat, -(-wait_us // 1000)
