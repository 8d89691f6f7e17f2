"""The time for which the supervisor did not run."""

from __future__ import annotations

from dataclasses import replace

from tests.support.actors import NOW, World
from upnextd.rules.slots import State
from upnextd.supervisor.lateness import LATE_S, TICK_S, Lateness


def test_a_tick_in_time_moves_nothing() -> None:
    world = World()
    world.fleet.desired = replace(world.fleet.desired, stop_by=NOW + 5.0)
    lateness = Lateness(world.fleet, world.log, world.loop.time)
    world.loop.advance(TICK_S + LATE_S - 0.01)
    lateness.forgive()
    assert world.fleet.desired.stop_by == NOW + 5.0
    assert not world.log.cautions


def test_a_late_tick_moves_deadlines_once() -> None:
    world = World()
    world.fleet.desired = replace(world.fleet.desired, stop_by=NOW + 5.0)
    lateness = Lateness(world.fleet, world.log, world.loop.time)
    world.loop.advance(TICK_S + 30.0)
    lateness.forgive()
    lateness.forgive()
    assert world.fleet.desired.stop_by == NOW + 35.0
    assert len(world.log.cautions) == 1


def test_ticks_start_the_time_anew() -> None:
    world = World()
    world.instance("worker-2", State.STARTING)
    lateness = Lateness(world.fleet, world.log, world.loop.time)
    for _ in range(5):
        world.loop.advance(TICK_S)
        lateness.ticked()
    lateness.forgive()
    assert not world.log.cautions
