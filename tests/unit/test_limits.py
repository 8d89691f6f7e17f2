"""Rates as people write them, and permits that never exceed them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core.limits import burst, gcra, interval_us, parse_rate
from upnext.core.spec import RateLimit
from upnext.errors import UsageError

NOW = 1_763_762_400_000_000


@pytest.mark.parametrize(
    ("text", "count", "period_s"),
    [
        ("10/minute", 10, 60), ("100/s", 100, 1), ("5/2h", 5, 7200), (" 3 / 10 sec ", 3, 10), ("1/day", 1, 86400), ("7/HOUR", 7, 3600),
        ("2/5min", 2, 300), ("2/m", 2, 60), ("1/366d", 1, 366 * 86400), ("100000/s", 100_000, 1),
    ],
)  # fmt: skip
def test_parse(text: str, count: int, period_s: float) -> None:
    assert parse_rate(text) == RateLimit(count, period_s)


HOW = "write a count, a slash and a period, like 10/minute, 100/s or 5/2h"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", HOW), ("10", HOW), ("10/", HOW), ("10/60", HOW), ("/s", HOW), ("-1/s", HOW), ("1.5/s", HOW), ("ten/s", HOW),
        ("10/fortnight", HOW),
        ("10 per s", HOW),
        ("0/s", "the count and the period are at least 1 (to stop a task, pause it)"),
        ("1/0s", "the count and the period are at least 1 (to stop a task, pause it)"),
        ("1/367d", "a period is at most 366 days"),
        ("100001/s", "at most 100000 a second; without a limit a task is faster"),
    ],
)  # fmt: skip
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert str(caught.value) == f"rate limit {text!r}: {why}"


LIMITS = st.builds(RateLimit, st.integers(1, 5000), st.integers(1, 7200).map(float))
ASKS = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 200)), min_size=1, max_size=60)


@settings(deadline=None)
@given(LIMITS, ASKS)
def test_no_window_of_a_period_sees_more_than_the_count_and_one_burst(
    limit: RateLimit, asks: list[tuple[float, int]]
) -> None:
    now, tat, grants = NOW, 0, list[tuple[int, int]]()
    period = round(limit.period_s * 1e6)
    for gap_intervals, want in asks:
        now += round(gap_intervals * interval_us(limit))
        granted, tat, _ = gcra(tat, now, limit, want)
        assert 0 <= granted <= want
        grants.append((now, granted))
        window = sum(count for at, count in grants if at > now - period)
        assert window <= limit.count + burst(limit)


@settings(deadline=None)
@given(LIMITS)
def test_a_hungry_asker_gets_the_whole_rate(limit: RateLimit) -> None:
    now, tat, got, asked = NOW, 0, 0, 0
    while got < 50:
        granted, tat, wait_ms = gcra(tat, now, limit, 10)
        got, asked = got + granted, asked + 1
        if got < 50:
            now += wait_ms * 1000
        assert asked <= 200
    ideal_us = max(0, got - burst(limit)) * interval_us(limit)
    assert now - NOW <= ideal_us + asked * 1000  # a wait is rounded up to a whole millisecond


@settings(deadline=None)
@given(LIMITS, st.integers(0, 10**7))
def test_retry_after_is_true_and_not_late(limit: RateLimit, later: int) -> None:
    _, tat, wait_ms = gcra(0, NOW, limit, 10**6)
    assert wait_ms > 0
    assert gcra(tat, NOW + wait_ms * 1000, limit, 1)[0] == 1
    early = NOW + min(later, wait_ms * 1000 - 1001)
    if early >= NOW:
        assert gcra(tat, early, limit, 1)[0] == 0


def test_ten_a_second_are_single_starts_100_ms_apart() -> None:
    limit = parse_rate("10/s")
    assert gcra(0, NOW, limit, 10) == (1, NOW + 100_000, 100)
    assert gcra(NOW + 100_000, NOW + 99_999, limit, 10) == (0, NOW + 100_000, 1)
    assert gcra(NOW + 100_000, NOW + 100_000, limit, 10) == (1, NOW + 200_000, 100)
    assert gcra(0, NOW, parse_rate("100/s"), 50)[0] == 10


def test_a_time_from_a_slower_limit_or_a_broken_clock_is_brought_back() -> None:
    granted, tat, wait_ms = gcra(NOW + 10**12, NOW, parse_rate("10/s"), 1)
    assert (granted, tat, wait_ms) == (0, NOW + 100_000, 100)
