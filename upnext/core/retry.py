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

JITTER = 0.2


class Why(StrEnum):
    """Why there is no further attempt."""

    OUT_OF_ATTEMPTS = "out of attempts"
    NOT_RETRIED = "its type is not retried"
    NOT_DECIDED = "its retry_on failed itself"


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try again after so many seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed."""

    why: Why


def delay_s(options: TaskOptions, attempt: int, rng: random.Random) -> float:
    """Seconds after failed attempt number `attempt` (from 1), ±20 % unless the task has no jitter, at most its longest delay.

    retry_delay × retry_backoff^(attempt − 1), or what a list of delays has for this attempt. A delay that the task asks for itself
    (`Retry(delay=…)`) has no cap and no jitter.
    """
    if options.retry_delays_s:
        base = options.retry_delays_s[min(attempt, len(options.retry_delays_s)) - 1]
    else:
        try:
            base = options.retry_delay_s * options.retry_backoff ** (attempt - 1)
        except OverflowError:
            return options.retry_max_delay_s
    spread = rng.uniform(1 - JITTER, 1 + JITTER) if options.retry_jitter else 1.0
    return min(options.retry_max_delay_s, base * spread)


def decide(options: TaskOptions, attempt: int, error: BaseException, rng: random.Random) -> RetryIn | GiveUp:
    """After attempt number `attempt` (from 1) raised `error`.

    `no_retry_on` wins over `retry_on`; an empty `retry_on` means every type. `Retry` asks regardless of both, but is an attempt too.
    """
    if options.retries is not None and attempt > options.retries:
        return GiveUp(Why.OUT_OF_ATTEMPTS)
    if isinstance(error, Retry):
        asked = error.delay_s
        if asked is not None and -math.inf < asked < math.inf:
            return RetryIn(max(0.0, min(asked, LONGEST_S)))
        return RetryIn(delay_s(options, attempt, rng))
    if isinstance(error, options.no_retry_on) or (options.retry_on and not isinstance(error, options.retry_on)):
        return GiveUp(Why.NOT_RETRIED)
    if options.retry_if is not None:
        try:
            wanted = options.retry_if(error)
        except Exception:  # noqa: BLE001 - the boundary to the user's predicate: an error of its own is no reason to try again
            return GiveUp(Why.NOT_DECIDED)
        if not wanted:
            return GiveUp(Why.NOT_RETRIED)
    return RetryIn(delay_s(options, attempt, rng))
