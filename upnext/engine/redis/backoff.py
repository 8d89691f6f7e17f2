"""Waits between tries to reach a broker that is away."""

from __future__ import annotations

import asyncio
import random

# Never from the module's generator: programs seed it, and a fork copies its state into every child.
_RNG = random.SystemRandom()


class Backoff:
    """50 ms doubling to 1 s, ±20 %: a thousand clients don't come back as one."""

    def __init__(self, rng: random.Random | None = None, *, first_s: float = 0.05, last_s: float = 1.0) -> None:
        self._uniform = (rng or _RNG).uniform
        self._first_s, self._last_s = first_s, last_s
        self._delay_s = first_s

    def reset(self) -> None:
        self._delay_s = self._first_s

    def next_s(self) -> float:
        delay_s = self._delay_s * self._uniform(0.8, 1.2)
        self._delay_s = min(self._last_s, 2 * self._delay_s)
        return delay_s

    async def sleep(self) -> None:
        await asyncio.sleep(self.next_s())
