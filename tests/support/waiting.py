"""Waiting for a condition with a deadline. Tests never sleep for a guessed time.

Tests name the seconds that a calm machine needs at most; here and in `PATIENCE * …` they become what a busy one is given.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

PATIENCE = 5
"""How much slower than a calm machine this one may be: deadlines, and bars for what was measured, are multiplied by it."""

_LONGEST_S = 100.0
"""Below the time limit of a test, so that the error names the condition."""
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


class TooLateError(AssertionError):
    """The condition did not come true in time."""


def _late(what: str, timeout_s: float, last: object) -> TooLateError:
    return TooLateError(f"{what or 'condition'}: not within {timeout_s:g} s; last seen: {last!r}")


def given(timeout_s: float) -> float:
    """What is waited where a calm machine needs `timeout_s`."""
    return max(timeout_s, min(timeout_s * PATIENCE, _LONGEST_S))


def wait_until(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """Calls `condition` until it is true, and returns what it returned. Raises TooLateError (an AssertionError) at the deadline."""
    timeout_s = given(timeout_s)
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise _late(what, timeout_s, value)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


async def wait_until_async(
    condition: Callable[[], T] | Callable[[], Awaitable[T]], timeout_s: float = 10.0, what: str = ""
) -> T:
    """The same inside a loop; `condition` may be plain or async."""
    timeout_s = given(timeout_s)
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        answer = condition()
        value = cast("T", await answer if inspect.isawaitable(answer) else answer)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise _late(what, timeout_s, value)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
