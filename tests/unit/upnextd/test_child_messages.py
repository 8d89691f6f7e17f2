"""What a message of a child leads to, and what the scheduler child is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.actors import NOW, World, child_of
from upnextd.rules.plan import Role
from upnextd.rules.slots import Event, Life, State
from upnextd.shared import messages
from upnextd.supervisor.messages import CUT_OFF_LEAVE_S, CUT_OFF_S, NOTICES_AGAIN_S, ChildMessages


class Case:
    def __init__(self) -> None:
        self.world = World()
        world = self.world
        self.scheduler = world.scheduler()
        self.worker = world.fleet.instances[0]
        self.child = child_of(self.worker)
        self.actor = ChildMessages(
            world.fleet,
            world.duties,
            lambda: {"name": "shop"},
            world.kernel,
            world.loop,
            world.log,
            Path("/state"),
            stop_timeout_s=30.0,
        )

    def send(self, message: object) -> None:
        assert self.worker.child is not None
        self.actor.on_message(self.worker.child, message)  # type: ignore[arg-type]

    def sent(self) -> list[object]:
        return child_of(self.scheduler).channel.sent


def died(consumer: str) -> messages.Died:
    return messages.Died(consumer=consumer, cause="oom", charge=True, started=(), detail="", crash="", suspects=0)


@pytest.mark.parametrize(
    ("paused", "events"), [(False, [Event.BECAME_READY]), (True, [Event.BECAME_READY, Event.PAUSE])]
)
def test_ready_starts_the_heartbeat(paused: bool, events: list[Event]) -> None:
    case = Case()
    case.child.ready_at, case.child.page.heartbeat = None, 7
    case.send(messages.Ready(paused=paused))
    assert [event for _, event in case.world.duties.posted] == events
    assert case.child.ready_at == NOW
    assert case.child.heart.counter == 7
    assert case.world.duties.events[0][0] == "child_ready"


def test_only_the_latest_drain_is_answered() -> None:
    case = Case()
    case.child.drain_number = 2
    case.send(messages.Drained(number=1))
    assert not case.world.duties.posted
    case.send(messages.Drained(number=2))
    assert case.world.duties.posted == [("worker-1", Event.DRAINED)]


def test_a_child_with_a_stuck_job_is_replaced_within_the_stop_timeout() -> None:
    case = Case()
    case.send(messages.Stuck(job_id="ship:1", reason="a thread"))
    assert case.worker.outdated
    assert case.worker.leave_s == 30.0
    assert case.world.duties.wakes == 1
    assert "ship:1" in case.world.log.cautions[0]


def test_a_reaped_consumer_is_settled() -> None:
    case = Case()
    case.world.fleet.pending_notices.add(died("c1"))
    case.send(messages.Reaped(consumer="c1"))
    assert not len(case.world.fleet.pending_notices)


def test_a_lost_lease_goes_to_the_child_that_had_it() -> None:
    case = Case()
    other = case.world.instance("worker-2")
    child_of(other).page.names = ["consumer-2"]
    case.send(messages.LeaseLost(consumer="consumer-2"))
    assert child_of(other).channel.sent == [messages.TakeNewName(consumer="consumer-2")]
    assert not case.child.channel.sent


def test_another_id_is_taken_and_stored() -> None:
    case = Case()
    case.send(messages.Renamed(daemon_id="d2"))
    assert case.world.fleet.daemon_id == "d2"
    assert case.world.fleet.mark == "d1", "the processes that run have the old mark"
    assert case.world.kernel.stored == ["d2"]


def test_only_the_wanted_scheduler_reports() -> None:
    case = Case()
    report = messages.SchedulerReport(leader=True, epoch=4, connected=True, suspects=False)
    assert case.scheduler.child is not None
    case.scheduler.generation = 2
    case.actor.on_message(case.scheduler.child, report)
    assert not case.world.fleet.scheduler_status.leader
    case.scheduler.generation = 1
    case.actor.on_message(case.scheduler.child, report)
    assert case.world.fleet.scheduler_status.leader
    assert case.world.fleet.scheduler_status.epoch == 4


def test_what_a_child_reports_before_its_end_is_kept() -> None:
    case = Case()
    case.send(messages.Stopped(abandoned=("ship:1",)))
    case.send(messages.BootFailed(code=3, line="no broker"))
    assert case.child.abandoned == ["ship:1"]
    assert case.child.boot_failure == (3, "no broker")


def test_a_message_of_a_child_that_is_not_in_the_fleet_is_ignored() -> None:
    case = Case()
    case.world.fleet.instances.remove(case.worker)
    case.send(messages.Ready(paused=False))
    assert not case.world.duties.posted


class TestAChildWithoutAChannel:
    @pytest.mark.parametrize(("busy", "leave_s"), [(False, CUT_OFF_LEAVE_S), (True, CUT_OFF_LEAVE_S + 30.0)])
    def test_is_replaced(self, busy: bool, leave_s: float) -> None:
        case = Case()
        case.child.page.jobs = [object()] if busy else []  # type: ignore[list-item]
        case.send(None)
        case.world.loop.advance(CUT_OFF_S)
        assert case.worker.outdated
        assert case.worker.leave_s == leave_s

    def test_is_killed_before_it_was_ready(self) -> None:
        case = Case()
        case.worker.life = Life(State.STARTING)
        case.send(None)
        case.world.loop.advance(CUT_OFF_S)
        assert case.child.signals == ["SIGKILL"]

    def test_is_ended_by_a_signal_when_it_drains(self) -> None:
        case = Case()
        case.worker.life = Life(State.DRAINING)
        case.send(None)
        case.world.loop.advance(CUT_OFF_S)
        assert case.child.signals == ["SIGTERM"]
        assert case.child.asked

    def test_may_be_on_its_way_out(self) -> None:
        case = Case()
        case.child.asked = True
        case.send(None)
        case.world.loop.advance(CUT_OFF_S)
        assert not case.worker.outdated
        assert not case.child.signals


class TestTheScheduler:
    def test_gets_the_status_that_it_asks_for(self) -> None:
        case = Case()
        assert case.scheduler.child is not None
        case.actor.on_message(case.scheduler.child, messages.AskStatus(number=3))
        assert case.sent() == [messages.DaemonStatus(number=3, status='{"name":"shop"}')]

    def test_gets_a_changed_list_of_consumers_once(self) -> None:
        case = Case()
        case.send(messages.ConsumerNamed(worker=0, consumer="consumer-1"))
        case.send(messages.ConsumerNamed(worker=0, consumer="consumer-1"))
        assert case.sent() == [messages.Alive(consumers=("consumer-1",))]

    def test_gets_everything_when_it_is_new(self) -> None:
        case = Case()
        case.world.fleet.pending_notices.add(died("c1"))
        assert case.scheduler.child is not None
        case.actor.send_initial_state(case.scheduler.child)
        assert case.sent() == [messages.Alive(consumers=("consumer-1",)), died("c1")]

    def test_gets_notices_again_until_they_are_settled(self) -> None:
        case = Case()
        case.world.fleet.pending_notices.add(died("c1"))
        case.actor.send_notices()
        case.actor.repeat_notices(NOW + NOTICES_AGAIN_S)
        assert len(case.sent()) == 1
        case.actor.repeat_notices(NOW + NOTICES_AGAIN_S + 0.1)
        assert len(case.sent()) == 2
        case.world.fleet.pending_notices.acknowledge("c1")
        case.actor.repeat_notices(NOW + 100.0)
        assert len(case.sent()) == 2

    def test_gets_no_consumer_of_an_ended_child(self) -> None:
        case = Case()
        case.worker.life = Life(State.EXITED)
        assert not case.world.fleet.children(Role.WORKER)
        case.actor.send_alive_if_changed()
        assert case.sent() == [messages.Alive(consumers=())]
