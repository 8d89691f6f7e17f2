"""Rates as people write them, and permits that never exceed them."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core.limits import burst, checked, gcra, interval_us, parse_rate, slack_us
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


BURSTS = LIMITS.flatmap(
    lambda limit: st.integers(1, limit.count).map(lambda many: RateLimit(limit.count, limit.period_s, many))
)


@settings(deadline=None)
@given(st.one_of(LIMITS, BURSTS), ASKS)
def test_no_window_of_a_period_sees_more_than_the_count(limit: RateLimit, asks: list[tuple[float, int]]) -> None:
    """Wherever it begins, however the askers come; with a burst of its own, that on top."""
    now, tat, grants = NOW, 0, list[tuple[int, int]]()
    period = round(limit.period_s * 1e6)
    most = limit.count + (0 if limit.burst is None else limit.burst)
    for gap_intervals, want in asks:
        now += round(gap_intervals * interval_us(limit))
        granted, tat, _ = gcra(tat, now, limit, want)
        assert 0 <= granted <= want
        grants.append((now, granted))
        window = sum(count for at, count in grants if at > now - period)
        assert window <= most


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 1500), st.integers(1, 3600), st.integers(0, 60_000), st.integers(0, 10**9))
def test_the_count_holds_and_is_made_use_of_by_a_hungry_asker(
    count: int, period_s: int, late_us: int, seed: int
) -> None:
    """Who asks again as soon as there is a permit, up to `late_us` late."""
    limit, rng = RateLimit(count, float(period_s)), random.Random(seed)
    period, now, tat, starts = period_s * 1_000_000, NOW, 0, list[int]()
    while now < NOW + 3 * period:
        granted, tat, wait_ms = gcra(tat, now, limit, 10**6)
        starts += [now] * granted
        now += max(1, wait_ms) * 1000 + rng.randint(0, late_us)
    most = max(bisect_left(starts, at + period) - place for place, at in enumerate(starts))
    assert most <= count
    lost_us = 1000 + late_us  # of each bunch
    even = period / (interval_us(limit) + lost_us / max(1, burst(limit)))
    assert len(starts) >= 3 * min(count, even) * 0.95 - 1


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
    """And half a ms, for the slack: a start may be 5 ms late without delaying the next, and no second may see 11."""
    limit, step = parse_rate("10/s"), 100_500
    assert (interval_us(limit), slack_us(limit)) == (step, 5_000)
    assert gcra(0, NOW, limit, 10) == (1, NOW + step, 101)
    assert gcra(NOW + step, NOW + step - 1, limit, 10) == (0, NOW + step, 1)
    assert gcra(NOW + step, NOW + step, limit, 10) == (1, NOW + 2 * step, 101)
    assert gcra(NOW + step, NOW + step + 5_000, limit, 10)[1] == NOW + 2 * step
    assert gcra(0, NOW, parse_rate("100/s"), 50)[0] == 2
    assert gcra(0, NOW, RateLimit(100, 1, burst=10), 50)[0] == 10


def test_a_time_from_a_slower_limit_or_a_broken_clock_is_brought_back() -> None:
    granted, tat, wait_ms = gcra(NOW + 10**12, NOW, parse_rate("10/s"), 1)
    assert (granted, tat, wait_ms) == (0, NOW + 100_500, 101)


@pytest.mark.parametrize("many", [0, -1, 11])
def test_a_burst_that_can_t_be_meant(many: int) -> None:
    with pytest.raises(UsageError, match="at least 1 and at most the count"):
        checked(RateLimit(10, 1.0, many), "of ten")
