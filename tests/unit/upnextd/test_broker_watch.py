"""When it is logged that the broker is away, and that it answers again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.actors import NOW, World
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import State
from upnextd.supervisor.broker_watch import AWAY_S, BrokerWatch
from upnextd.supervisor.instances import SchedulerStatus

HERE, AWAY = SchedulerStatus(connected=True), SchedulerStatus(connected=False)


def watched(*, scheduler: State | None = State.READY) -> tuple[World, BrokerWatch]:
    world = World()
    world.fleet.redis_url = "redis://u:secret@there"
    if scheduler is not None:
        world.instance("scheduler", scheduler, role=Role.SCHEDULER)
    return world, BrokerWatch(world.fleet, world.duties, world.log)


def test_each_change_is_logged_once() -> None:
    world, watch = watched()
    for outage in range(2):
        begun = NOW + 100 * outage
        for after_s in range(30):
            world.fleet.scheduler_status = AWAY if after_s < 20 else HERE
            watch.check(begun + after_s)
    away = "the broker does not answer (redis://u:***@there): jobs wait, what runs goes on"
    assert world.log.faults == [away, away]
    assert world.log.notes == ["the broker answers again, after 20 s"] * 2
    assert world.duties.events == [("broker", {"connected": False}), ("broker", {"connected": True})] * 2


def test_one_that_is_away_for_a_moment_is_not_logged() -> None:
    world, watch = watched()
    for beat in range(20):
        world.fleet.scheduler_status = HERE if beat % 2 else AWAY
        watch.check(NOW + beat * AWAY_S / 2)
    assert (world.log.faults, world.log.notes) == ([], [])


@pytest.mark.parametrize("scheduler", [State.STARTING, State.BACKOFF, None])
def test_a_scheduler_that_is_replaced_reports_nothing(scheduler: State | None) -> None:
    world, watch = watched(scheduler=scheduler)
    for after_s in range(10):
        watch.check(NOW + after_s)
    assert not world.log.faults


def test_children_that_can_not_start_for_it_are_one_line() -> None:
    world, watch = watched(scheduler=State.BACKOFF)
    for after_s in range(0, 60, 6):
        watch.missed(NOW + after_s)
        watch.check(NOW + after_s + 3)
    assert len(world.log.faults) == 1


@pytest.mark.parametrize("phase", ["starts", "stops"])
def test_a_daemon_that_starts_or_stops_logs_it_elsewhere(phase: str) -> None:
    world, watch = watched()
    if phase == "starts":
        world.fleet.booted = False
    else:
        world.fleet.desired = replace(world.fleet.desired, mode=Mode.STOP)
    for after_s in range(10):
        watch.check(NOW + after_s)
    assert not world.log.faults
