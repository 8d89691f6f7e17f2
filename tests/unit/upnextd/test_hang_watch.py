"""When the supervisor looks at heartbeats beside its ticks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from upnextd.rules.hangs import Heart
from upnextd.rules.plan import Role
from upnextd.rules.slots import Life, State
from upnextd.supervisor.hang_watch import HangWatch
from upnextd.supervisor.supervisor import Supervisor


class Timers:
    """A loop that only keeps what is to be called later."""

    def __init__(self) -> None:
        self.pending: list[asyncio.TimerHandle] = []
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, (), cast("Any", self))
        self.pending.append(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.pending.remove(handle)

    def get_debug(self) -> bool:
        return False


def test_hangs_that_are_due_before_the_next_tick_are_looked_for_once() -> None:
    loop = Timers()
    page = SimpleNamespace(heartbeat=1)
    instances = [
        SimpleNamespace(
            child=SimpleNamespace(ready_at=90.0, heart=Heart(1, 99.9 - number / 100), page=page),
            role=Role.WORKER,
            life=Life(State.READY),
        )
        for number in range(5)
    ]
    settings = SimpleNamespace(hang_timeout_s=1.0)
    supervisor = SimpleNamespace(
        loop=loop, instances=instances, settings=settings, post=lambda *_: None, forgive_lateness=lambda: None
    )
    pulses = HangWatch(cast("Supervisor", supervisor))
    for _ in range(3):
        pulses.check(loop.now)
    assert [round(handle.when(), 3) for handle in loop.pending] == [100.861], "the first that is due"
    due = loop.pending.pop()
    loop.now = due.when()
    due._run()
    assert len(loop.pending) == 1
