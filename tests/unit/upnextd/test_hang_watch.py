"""When heartbeats are checked beside the ticks, and what a missing one leads to."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.support.actors import NOW, World, child_of
from upnextd.rules.hangs import Heart
from upnextd.rules.slots import Event, Life, State
from upnextd.shared import messages, process
from upnextd.supervisor.hang_watch import SCHEDULER_HANG_S, HangWatch
from upnextd.supervisor.lateness import Lateness


def watch_of(world: World, hang_timeout_s: float, loop: Any = None) -> HangWatch:
    loop = loop or world.loop
    return HangWatch(
        world.fleet, world.duties, Lateness(world.fleet, world.log, loop.time), loop, world.log, hang_timeout_s
    )


def test_hangs_that_are_due_before_the_next_tick_are_checked_once() -> None:
    world = World(workers=5)
    for number, instance in enumerate(world.fleet.instances):
        child_of(instance).heart = Heart(1, NOW - 0.1 - number / 100)
    watch = watch_of(world, 1.0)
    for _ in range(3):
        watch.check(world.loop.now)
    assert [round(timer.when() - NOW, 3) for timer in world.loop.timers] == [0.861], "the first that is due"
    world.loop.advance(0.9)
    assert world.duties.posted[0] == ("worker-5", Event.HUNG)
    assert len(world.loop.timers) == 1


def test_a_child_hangs_and_hangs_on() -> None:
    world = World()
    watch = watch_of(world, 10.0)
    for seconds in range(0, 30, 5):
        watch.check(NOW + seconds)
    assert world.duties.posted == [("worker-1", Event.HUNG), ("worker-1", Event.HUNG_ON)]


def test_a_scheduler_gets_less_time() -> None:
    world = World(workers=0)
    world.scheduler()
    watch = watch_of(world, 60.0)
    watch.check(NOW + SCHEDULER_HANG_S - 0.1)
    assert not world.duties.posted
    watch.check(NOW + SCHEDULER_HANG_S)
    assert world.duties.posted == [("scheduler", Event.HUNG)]


@pytest.mark.parametrize("state", [State.SPAWNING, State.STARTING, State.KILLING, State.KILLED, State.EXITED])
def test_a_child_that_does_not_serve_is_not_watched(state: State) -> None:
    world = World()
    world.fleet.instances[0].life = Life(state)
    watch_of(world, 1.0).check(NOW + 100.0)
    assert not world.duties.posted


def test_the_stacks_of_a_hung_child_are_logged_and_kept() -> None:
    world = World()
    instance = world.fleet.instances[0]
    child = child_of(instance)
    child.written_stacks = ["", "File a\n", "File b\n"]
    assert instance.child is not None
    watch_of(world, 1.0).dump_hung(instance, instance.child)
    world.loop.advance(1.5)
    assert child.signals == ["SIGUSR2"]
    assert child.stacks == "File a\nFile b\n"
    assert world.log.faults == [f"worker-1[{child.pid}] hangs: no heartbeat for 0.0 s\nFile a\nFile b"]


def test_a_child_that_ends_during_the_dump_is_not_read_again() -> None:
    world = World()
    instance = world.fleet.instances[0]
    child = child_of(instance)
    child.pidfd = -1
    assert instance.child is not None
    watch_of(world, 1.0).dump_hung(instance, instance.child)
    world.loop.advance(0.03)
    assert len(world.log.faults) == 1
    assert not world.loop.timers


async def test_stacks_on_demand_have_the_tasks_that_the_loop_describes() -> None:
    world = World()
    child = world.fleet.instances[0].child
    assert child is not None
    fake = child_of(world.fleet.instances[0])
    fake.written_stacks = ["", "thread 1\n", ""]
    watch = watch_of(world, 1.0, asyncio.get_running_loop())
    reading = asyncio.ensure_future(watch.stacks(child))
    await asyncio.sleep(0)
    assert fake.channel.sent == [messages.DescribeTasks(number=1)]
    fake.stack_waiters[1].set_result("task 1")
    assert await reading == "task 1\nthread 1\n"
    assert not fake.stack_waiters


async def test_a_child_that_has_just_started_is_not_ended_by_the_question_for_its_stacks() -> None:
    world = World()
    child = world.fleet.instances[0].child
    assert child is not None
    fake = child_of(world.fleet.instances[0])
    fake.catches = False
    watch = watch_of(world, 1.0, asyncio.get_running_loop())
    reading = asyncio.ensure_future(watch.stacks(child))
    await asyncio.sleep(0)
    fake.stack_waiters[1].set_result("")
    assert "it has just started" in await reading
    assert not fake.signals


def test_which_signals_a_process_catches() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert process.catches(os.getpid(), signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        assert not process.catches(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not process.catches(0, signal.SIGUSR2)
