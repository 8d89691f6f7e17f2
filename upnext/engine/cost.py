"""What an attempt cost: its CPU time, and the longest time for which it kept the loop.

The clock of a thread's CPU time takes microseconds to read, as long as a whole plain job. So it is read at most once in FRESH_NS, and what
is short counts as CPU time as it is: only a long step is compared with the clock. CPU times are so exact to about FRESH_NS for each long
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from upnext.core.outcome import Cost

T = TypeVar("T")

FRESH_NS = 5_000_000
LONG_MS = 5
"""The cost of an attempt that took less is not kept."""


class CpuClock:
    """The CPU time of the loop's thread."""

    __slots__ = ("_at_ns", "_cpu_ns")

    def __init__(self) -> None:
        self._at_ns = self._cpu_ns = 0

    def look(self) -> int:
        """Call it before something that may take long. -> Unix ns."""
        now_ns = time.time_ns()
        if not 0 <= now_ns - self._at_ns < FRESH_NS:
            self._at_ns, self._cpu_ns = now_ns, time.thread_time_ns()
        return now_ns

    def used_ns(self, began_ns: int, ended_ns: int) -> int:
        """CPU time of a step that has just ended."""
        took_ns = max(0, ended_ns - began_ns)
        if took_ns < FRESH_NS:
            return took_ns
        before_ns = max(0, began_ns - self._at_ns)  # what ran between the look and the step counts as work
        self._at_ns, cpu_ns = ended_ns, time.thread_time_ns()
        used_ns, self._cpu_ns = cpu_ns - self._cpu_ns, cpu_ns
        return min(took_ns, max(0, used_ns - before_ns))


class Meter:
    """One attempt's, while it runs."""

    __slots__ = ("clock", "cpu_ns", "elsewhere", "step_ns")

    def __init__(self, clock: CpuClock) -> None:
        self.clock = clock
        self.cpu_ns = self.step_ns = 0
        self.elsewhere = False
        """Its function runs in another process."""

    def step(self, began_ns: int) -> None:
        """Count a step on the loop that has just ended."""
        ended_ns = time.time_ns()
        self.cpu_ns += self.clock.used_ns(began_ns, ended_ns)
        self.step_ns = max(self.step_ns, ended_ns - began_ns)

    def in_thread(self, function: Callable[[], T]) -> T:
        """Call `function`, in a thread that is not the loop's."""
        before_ns = time.thread_time_ns()
        try:
            return function()
        finally:
            self.cpu_ns += time.thread_time_ns() - before_ns

    def cost(self) -> Cost | None:
        """None where that is not known."""
        return None if self.elsewhere else Cost(self.cpu_ns / 1e9, self.step_ns / 1e9)
