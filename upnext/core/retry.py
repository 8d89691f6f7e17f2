"""Whether a failed attempt gets another one, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from upnext.core.spec import LONGEST_S, TaskOptions
from upnext.errors import Retry

if TYPE_CHECKING:
    import random

MAX_DELAY_S = 3600.0
"""Cap of a backoff. A delay that the task asks for itself (`Retry(delay=…)`) has none."""

JITTER = 0.2


class Why(StrEnum):
    """Why there is no further attempt."""

    OUT_OF_ATTEMPTS = "out of attempts"
    NOT_RETRIED = "its type is not retried"


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try again after so many seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed."""

    why: Why


def delay_s(options: TaskOptions, attempt: int, rng: random.Random) -> float:
    """Seconds after failed attempt number `attempt` (from 1): retry_delay × backoff^(attempt − 1), ±20 %, at most an hour."""
    try:
        base = options.retry_delay_s * options.retry_backoff ** (attempt - 1)
    except OverflowError:
        return MAX_DELAY_S
    return min(MAX_DELAY_S, base * rng.uniform(1 - JITTER, 1 + JITTER))


def decide(options: TaskOptions, attempt: int, error: BaseException, rng: random.Random) -> RetryIn | GiveUp:
    """After attempt number `attempt` (from 1) raised `error`.

    `no_retry_on` wins over `retry_on`; an empty `retry_on` means every type. `Retry` asks regardless of both, but is an attempt too.
    """
    if attempt > options.retries:
        return GiveUp(Why.OUT_OF_ATTEMPTS)
    if isinstance(error, Retry):
        asked = error.delay_s
        if asked is not None and -math.inf < asked < math.inf:
            return RetryIn(max(0.0, min(asked, LONGEST_S)))
        return RetryIn(delay_s(options, attempt, rng))
    refused = isinstance(error, options.no_retry_on) or bool(
        options.retry_on and not isinstance(error, options.retry_on)
    )
    return GiveUp(Why.NOT_RETRIED) if refused else RetryIn(delay_s(options, attempt, rng))
