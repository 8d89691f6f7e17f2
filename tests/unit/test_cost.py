"""cost: CPU time of an attempt and its longest step, with few looks at the thread's clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from upnext.core import outcome as outcomes
from upnext.core.outcome import Cost, JobStatus, Outcome
from upnext.engine.cost import CpuClock, Meter

MS = 1_000_000


@dataclass
class Thread:
    """The clocks of a thread that works or waits."""

    now_ns: int = 10**18
    cpu_ns: int = 0
    looks: int = 0

    def works(self, ms: float) -> None:
        self.now_ns += round(ms * MS)
        self.cpu_ns += round(ms * MS)

    def waits(self, ms: float) -> None:
        self.now_ns += round(ms * MS)

    def thread_time_ns(self) -> int:
        self.looks += 1
        return self.cpu_ns


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    found = Thread()
    monkeypatch.setattr(time, "time_ns", lambda: found.now_ns)
    monkeypatch.setattr(time, "thread_time_ns", found.thread_time_ns)
    return found


def test_a_step_that_waits_and_one_that_works(thread: Thread) -> None:
    meter = Meter(CpuClock())
    for move in (thread.works, thread.waits):
        began_ns = meter.clock.look()
        move(200)
        meter.step(began_ns)
        thread.waits(1_000)  # what others do on the loop meanwhile is not its own
    assert meter.cost() == Cost(0.2, 0.2)


def test_short_steps_cost_no_look_at_the_clock(thread: Thread) -> None:
    meter = Meter(CpuClock())
    for _ in range(10_000):
        began_ns = meter.clock.look()
        thread.works(0.01)
        meter.step(began_ns)
    assert meter.cost() == Cost(0.1, 0.00001)
    assert thread.looks <= 100 / 5 + 1


def test_what_ran_before_a_step_is_not_its_own(thread: Thread) -> None:
    clock = CpuClock()
    clock.look()
    thread.works(4)  # other jobs of the same turn
    meter = Meter(clock)
    began_ns = clock.look()
    thread.waits(50)
    thread.works(50)
    meter.step(began_ns)
    assert meter.cost() == Cost(0.05, 0.1)


def test_a_wall_clock_that_is_set_back_gives_nothing_negative(thread: Thread) -> None:
    meter = Meter(CpuClock())
    began_ns = meter.clock.look()
    thread.waits(-60_000)
    meter.step(began_ns)
    assert meter.cost() == Cost(0.0, 0.0)


def test_what_runs_in_another_process_is_not_known(thread: Thread) -> None:
    meter = Meter(CpuClock())
    meter.elsewhere = True
    assert meter.cost() is None


def test_it_is_kept_with_the_outcome() -> None:
    end = Outcome(JobStatus.DONE, cost=Cost(0.25, 1.5))
    assert outcomes.decode(outcomes.encode(end)) == end
    assert outcomes.decode(b'{"s":"done","k":[1]}').cost is None
    assert outcomes.decode(b'{"s":"done"}').cost is None
