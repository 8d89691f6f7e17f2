"""Who gets another attempt, and after how long."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnext.core.retry import GiveUp, RetryIn, Why, decide, delay_s
from upnext.core.spec import LONGEST_S, TaskOptions
from upnext.errors import Retry, UsageError


@given(st.integers(1, 2000), st.floats(0, 1e6), st.floats(0, 1e6), st.integers())
def test_a_delay_is_the_backoff_within_a_fifth_and_an_hour(
    attempt: int, delay: float, backoff: float, seed: int
) -> None:
    got = delay_s(TaskOptions(retry_delay_s=delay, retry_backoff=backoff), attempt, random.Random(seed))
    try:
        base = delay * backoff ** (attempt - 1)
    except OverflowError:
        base = math.inf
    assert min(3600.0, base * 0.799) <= got <= min(3600.0, base * 1.201)


def test_delays_differ_between_jobs() -> None:
    rng = random.Random(1)
    assert len({delay_s(TaskOptions(), 1, rng) for _ in range(20)}) == 20


def test_retries_are_attempts_after_the_first() -> None:
    rng = random.Random(1)
    options = TaskOptions(retries=2)
    assert isinstance(decide(options, 1, ValueError(), rng), RetryIn)
    assert isinstance(decide(options, 2, ValueError(), rng), RetryIn)
    assert decide(options, 3, ValueError(), rng) == GiveUp(Why.OUT_OF_ATTEMPTS)
    assert decide(TaskOptions(), 1, ValueError(), rng) == GiveUp(Why.OUT_OF_ATTEMPTS)


@pytest.mark.parametrize(
    ("retry_on", "no_retry_on", "error", "retried"),
    [
        ((), (), KeyError(), True),
        ((LookupError,), (), KeyError(), True),
        ((LookupError,), (), ValueError(), False),
        ((), (LookupError,), KeyError(), False),
        ((), (LookupError,), ValueError(), True),
        ((LookupError,), (KeyError,), KeyError(), False),
        ((LookupError,), (KeyError,), IndexError(), True),
        ((LookupError,), (Exception,), Retry(), True),
    ],
)
def test_types(
    retry_on: tuple[type[BaseException], ...],
    no_retry_on: tuple[type[BaseException], ...],
    error: Exception,
    retried: bool,
) -> None:
    options = TaskOptions(retries=1, retry_on=retry_on, no_retry_on=no_retry_on)
    got = decide(options, 1, error, random.Random(1))
    assert isinstance(got, RetryIn) if retried else got == GiveUp(Why.NOT_RETRIED)


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        (5.0, 5.0),
        (0, 0.0),
        (-3, 0.0),
        (1e6, 1e6),
        (timedelta(minutes=1), 60.0),
        (1e300, LONGEST_S),
        (10**400, LONGEST_S),
    ],
)
def test_a_task_may_name_its_delay(asked: float | timedelta, delay: float) -> None:
    assert decide(TaskOptions(retries=1), 1, Retry(delay=asked), random.Random(1)) == RetryIn(delay)


@pytest.mark.parametrize("asked", [None, math.nan, math.inf])
def test_a_retry_without_a_delay_backs_off(asked: float | None) -> None:
    got = decide(TaskOptions(retries=1), 1, Retry(delay=asked), random.Random(1))
    assert isinstance(got, RetryIn)
    assert 0.8 <= got.delay_s <= 1.2


def test_a_delay_that_is_no_duration_is_refused() -> None:
    with pytest.raises(UsageError, match="Retry: delay must be seconds or a timedelta, not '5'"):
        Retry(delay="5")  # type: ignore[arg-type]


def test_asking_for_a_retry_is_an_attempt_too() -> None:
    assert decide(TaskOptions(retries=1), 2, Retry(delay=1), random.Random(1)) == GiveUp(Why.OUT_OF_ATTEMPTS)
    assert [str(why) for why in Why] == [
        "out of attempts",
        "its type is not retried",
        "its retry_on failed itself",
    ]


def test_a_list_has_a_delay_for_each_retry_and_the_last_for_the_rest() -> None:
    options = TaskOptions(retries=None, retry_delays_s=(1.0, 5.0, 30.0), retry_jitter=False)
    rng = random.Random(1)
    assert [decide(options, attempt, ValueError(), rng) for attempt in (1, 2, 3, 4, 10**6)] == [
        RetryIn(1.0), RetryIn(5.0), RetryIn(30.0), RetryIn(30.0), RetryIn(30.0),
    ]  # fmt: skip
    spread = {delay_s(TaskOptions(retry_delays_s=(10.0,)), 1, rng) for _ in range(20)}
    assert len(spread) == 20
    assert all(8 <= one <= 12 for one in spread)


def test_the_longest_delay_and_no_jitter() -> None:
    options = TaskOptions(retry_max_delay_s=7.0, retry_jitter=False)
    assert [delay_s(options, attempt, random.Random(1)) for attempt in (1, 2, 3, 4, 5000)] == [1, 2, 4, 7, 7]


def test_a_predicate_decides_unless_no_retry_on_does() -> None:
    def busy(error: BaseException) -> bool:
        return error.args[0] == "busy"

    options, rng = TaskOptions(retries=3, retry_if=busy, no_retry_on=(KeyError,)), random.Random(1)
    assert isinstance(decide(options, 1, ValueError("busy"), rng), RetryIn)
    assert decide(options, 1, ValueError("gone"), rng) == GiveUp(Why.NOT_RETRIED)
    assert decide(options, 1, KeyError("busy"), rng) == GiveUp(Why.NOT_RETRIED)
    assert decide(options, 1, ValueError(), rng) == GiveUp(Why.NOT_DECIDED)
    assert isinstance(decide(options, 1, Retry(), rng), RetryIn)


def test_retry_at_a_moment() -> None:
    delay = Retry(at=datetime.now(UTC) + timedelta(hours=1)).delay_s
    assert delay is not None
    assert 3500 < delay <= 3600
    assert Retry(at=datetime(2020, 1, 1, tzinfo=UTC)).delay_s == 0
    mistakes: tuple[dict[str, Any], ...] = (
        {"at": datetime(2020, 1, 1)},
        {"at": 5},
        {"at": datetime.now(UTC), "delay": 1},
    )
    for wrong in mistakes:
        with pytest.raises(UsageError, match="Retry: "):
            Retry(**wrong)
