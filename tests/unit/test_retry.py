"""Who gets another attempt, and after how long."""

from __future__ import annotations

import math
import random
from datetime import timedelta

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
    assert [str(why) for why in Why] == ["out of attempts", "its type is not retried"]
