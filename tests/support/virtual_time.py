"""An asyncio loop of virtual time: it never blocks, and its clock jumps to the next timer. A seed draws the order of what is ready.

There are no sockets, threads or processes in it: what would wait for one stands still, and the run ends with `Stalled`. The same seed gives
the same run to the letter, as long as what runs in it depends on nothing else (no wall clock, no order of sets of objects).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

START_S = 1000.0
"""Where its clock begins."""
_CANCELS = 5
TICK_S = 1e-6
"""Timers of one moment come in an order that the seed draws: each is late by less than this."""


class Stalled(Exception):  # noqa: N818 - a finding, not a fault of the loop
    """Nothing is ready and no timer is set: what still waits would wait for ever."""


class _Selector:
    """In the place of the operating system: waiting is a jump of the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise Stalled
        if timeout_s > 0:
            self._loop.jump(timeout_s)
        return []

    def close(self) -> None: ...


class VirtualLoop(asyncio.BaseEventLoop):
    """`quiet` is called whenever nothing is ready, before the clock jumps: whatever should have happened by then has happened."""

    def __init__(self, rng: random.Random, quiet: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._rng, self.quiet = rng, quiet
        self._now_s = START_S
        self._clock_resolution = TICK_S / 1000
        self._selector = _Selector(self)
        self._ready: Any  # asyncio's own queue

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        if self.quiet is not None:
            self.quiet()
        self._now_s += seconds

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        late_s = self._rng.random() * TICK_S
        return super().call_at(when + late_s, callback, *args, context=context)

    def _run_once(self) -> None:
        ready = list(self._ready)
        if len(ready) > 1:
            self._rng.shuffle(ready)
            self._ready.clear()
            self._ready.extend(ready)
        cast("Any", super())._run_once()

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...


def run(
    main: Callable[[], Coroutine[Any, Any, T]], rng: random.Random, *, quiet: Callable[[], None] | None = None
) -> T:
    """Runs `main()` to its end in a loop of its own. Raises Stalled, and what `quiet` and `main` raise."""
    loop = VirtualLoop(rng, quiet)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        _abandon(loop)


def _abandon(loop: VirtualLoop) -> None:
    """Ends what is left. After a run that stalled or failed, tasks may need more than one cancel, or wait for what never comes."""
    loop.quiet = None
    for _ in range(_CANCELS):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task.cancel()
        with contextlib.suppress(Stalled):
            loop.run_until_complete(asyncio.wait(left))
    for task in asyncio.all_tasks(loop):
        cast("Any", task)._log_destroy_pending = False
    loop.close()
