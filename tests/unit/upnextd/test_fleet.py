"""The fleet: its views, and the way to JSON and back."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from tests.support.actors import NOW, World, child_of
from upnextd.rules import plan, rollout
from upnextd.rules.plan import Desired, Mode, Role
from upnextd.rules.slots import Life, State
from upnextd.shared.messages import Died
from upnextd.shared.scoreboard import RunningJob
from upnextd.supervisor import upgrade
from upnextd.supervisor.death_notices import LastExit
from upnextd.supervisor.fleet import LONG_START_S, Fleet, Rollout
from upnextd.supervisor.generations import Phase
from upnextd.supervisor.instances import SchedulerStatus, SlotHistory
from upnextd.supervisor.operations import Progress

JOB = RunningJob("ship:1", "ship", "default", "1-0", 2.0)


def test_a_leaving_or_quarantined_worker_is_not_ready() -> None:
    world = World(workers=3)
    world.fleet.instances[0].leave_by = NOW
    world.instance(plan.QUARANTINE)
    assert world.fleet.ready_workers() == 2


@pytest.mark.parametrize(("mode", "ready"), [(Mode.RUN, 0), (Mode.PAUSE, 1)])
def test_a_paused_worker_is_ready_where_the_operator_paused_it(mode: Mode, ready: int) -> None:
    world = World()
    world.fleet.instances[0].life = Life(State.PAUSED)
    world.fleet.desired = replace(world.fleet.desired, mode=mode)
    assert world.fleet.ready_workers() == ready


@pytest.mark.parametrize(
    ("mode", "life", "shown"),
    [
        (Mode.RUN, Life(State.READY), "running"),
        (Mode.PAUSE, Life(State.PAUSED), "paused"),
        (Mode.DRAIN, Life(State.DRAINING), "draining"),
        (Mode.DRAIN, Life(State.PAUSED), "draining"),
        (Mode.DRAIN_EXIT, Life(State.PAUSED, drained=True), "drained"),
        (Mode.STOP, Life(State.STOPPING), "stopping"),
        (Mode.STOP_NOW, Life(State.KILLED), "stopping"),
    ],
)
def test_modes_that_status_shows(mode: Mode, life: Life, shown: str) -> None:
    world = World()
    world.fleet.instances[0].life = life
    world.fleet.desired = replace(world.fleet.desired, mode=mode)
    assert world.fleet.mode() == shown


def test_a_reload_is_shown_unless_the_daemon_stops() -> None:
    world = World()
    world.fleet.rollouts.queued = Rollout(2, 1)
    assert world.fleet.mode() == "reloading"
    world.fleet.desired = replace(world.fleet.desired, mode=Mode.STOP)
    assert world.fleet.mode() == "stopping"


def test_what_keeps_a_child_from_getting_ready_is_a_problem() -> None:
    world = World(workers=2)
    fleet, (one, _) = world.fleet, world.fleet.instances
    assert fleet.problem(NOW) is None
    one.life = Life(State.STARTING)
    assert fleet.problem(NOW + LONG_START_S - 1) is None
    assert "worker-1 is not ready 7 s after its start" in (fleet.problem(NOW + 7.5) or "")
    fleet.start_failed(one, "no table of that name")
    one.life = Life(State.BACKOFF)
    assert "worker-1 can't start: no table of that name" in (fleet.problem(NOW) or "")
    one.life = Life(State.READY)
    assert fleet.problem(NOW) is None


def test_a_failure_of_code_on_trial_is_the_problem_of_its_reload() -> None:
    world = World()
    instance = world.instance("worker-1", generation=2)
    world.fleet.rollouts.current = Rollout(2, 1, rollout.Phase.TRYING)
    world.fleet.start_failed(instance, "no")
    assert not world.fleet.history


def test_only_a_rollout_that_is_not_over_is_on_trial() -> None:
    rollouts = World().fleet.rollouts
    rollouts.current = Rollout(2, 1, rollout.Phase.TRYING)
    rollouts.keep_line(2, "mine")
    rollouts.keep_line(1, "not mine")
    assert rollouts.on_trial(2)
    assert not rollouts.on_trial(1)
    rollouts.current.phase = rollout.Phase.COMMITTED
    rollouts.keep_line(2, "too late")
    assert not rollouts.on_trial(2)
    assert list(rollouts.current.tail) == ["mine"]


def test_a_template_that_cannot_fork_is_none() -> None:
    world = World()
    assert world.fleet.template(1) is not None
    assert world.fleet.template(None) is None
    assert world.fleet.template(7) is None
    world.template(2, phase=Phase.IMPORTING)
    world.template(3, retired=True)
    assert world.fleet.template(2) is None
    assert world.fleet.template(3) is None


def test_a_worker_works_when_it_is_proven_or_runs_a_job() -> None:
    world = World()
    fleet, child = world.fleet, child_of(world.fleet.instances[0])
    assert not fleet.any_works(NOW + 1.0)
    assert fleet.any_works(NOW + plan.PROVEN_S)
    fleet.instances[0].life = Life(State.STOPPING)
    assert not fleet.any_works(NOW + plan.PROVEN_S)
    child.page.jobs = [JOB]
    assert fleet.any_works(NOW + 1.0)
    assert not fleet.any_works(NOW + 1.0, generation=2)
    fleet.instances[0].leave_by = NOW
    assert not fleet.any_works(NOW + 1.0, generation=1), "it is to leave"


def test_where_the_broker_is() -> None:
    world = World()
    assert world.fleet.broker_url() == "redis://there", "as the service declares"
    world.fleet.redis_url = "redis://flag"
    assert world.fleet.broker_url() == "redis://flag"
    world.fleet.redis_url = None
    world.fleet.generations.clear()
    assert world.fleet.broker_url() == ""


def test_time_without_the_supervisor_does_not_count() -> None:
    world = World()
    instance = world.fleet.instances[0]
    instance.life = Life(State.STOPPING, NOW, NOW + 5.0)
    instance.leave_by = NOW + 6.0
    world.fleet.desired = replace(world.fleet.desired, stop_by=NOW + 7.0)
    world.fleet.forgive(100.0)
    assert instance.life.deadline == NOW + 105.0
    assert instance.leave_by == NOW + 106.0
    assert world.fleet.desired.stop_by == NOW + 107.0
    assert child_of(instance).heart.changed_at == NOW + 100.0
    assert world.fleet.generations[1].due_at == NOW + 160.0


def test_ids_are_never_given_twice_over_an_upgrade() -> None:
    world = World()
    last = world.fleet.next_id()
    fresh = Fleet("shop", "new", "new", Desired(1, 1, 1), 2, 2.0, listeners=World().fleet.listeners)
    fresh.from_state(orjson.loads(orjson.dumps(world.fleet.to_state())))
    assert fresh.next_id() > last


def test_everything_goes_to_json_and_back() -> None:
    world = World(workers=2)
    fleet = world.fleet
    instance = fleet.instances[0]
    instance.life = Life(State.DRAINING, 3.0, 9.0, drained=True)
    instance.leave_by, instance.leave_s, instance.reason, instance.outdated = 5.0, 4.0, "reloaded", True
    fleet.desired = replace(
        fleet.desired, mode=Mode.PAUSE, workers=7, generation=3, renewed=(("worker-1", 4),), stand_in=2, quarantine=True
    )
    fleet.daemon_id = "renamed"
    fleet.history["worker-1"] = SlotHistory(4, 3, LastExit("signal", None, "SIGSEGV", "today"))
    fleet.history["worker-2"] = SlotHistory(1, 0, None)
    fleet.scheduler_status = SchedulerStatus(True, 5, True, True)
    fleet.pending_notices.add(
        Died(consumer="c", cause="oom", charge=True, started=(), detail="", crash="c", suspects=0)
    )
    fleet.record = plan.Record((("worker-1", 2),), (("worker: died", 8.0),))
    fleet.contents = {3: "abc"}
    fleet.rollouts.former, fleet.rollouts.last_number = 2, 6
    fleet.operations.begin("stop", lambda: Progress("")).report(Progress("done", done=True))
    fleet.counters.reloads["ok"] = 2
    written = orjson.loads(orjson.dumps(fleet.to_state()))
    fresh = Fleet("shop", "new", "new", Desired(1, 1, 1), 2, 2.0, listeners=World().fleet.listeners)
    fresh.from_state(written)
    assert orjson.loads(orjson.dumps(fresh.to_state())) == written
    assert (fresh.daemon_id, fresh.mark, fresh.is_open, fresh.booted) == ("renamed", "d1", True, True)
    assert [one.view() for one in fresh.instances] == [one.view() for one in fleet.instances]


def test_an_upgrade_hands_over_children_and_templates_beside_the_fleet() -> None:
    world = World()
    world.instance("worker-2", State.BACKOFF, with_child=False)
    fds: list[int] = []
    state = upgrade.to_state(world.fleet, fds)
    assert [one["child"] is None for one in state["instances"]] == [False, True]
    assert fds == [child_of(world.fleet.instances[0]).pidfd]
    assert state["generations"] == [{"number": 1}]
    assert state["broker"] is None


@pytest.mark.parametrize(
    ("change", "waits_for"),
    [
        (lambda world: None, None),
        (lambda world: setattr(world.fleet, "booted", False), "the start"),
        (lambda world: setattr(world.fleet.rollouts, "queued", Rollout(2, 1)), "the reload"),
        (lambda world: world.fleet.operations.begin("drain", lambda: Progress("")), "an operation that is under way"),
        (lambda world: world.template(2, phase=Phase.IMPORTING), "the template of generation 2"),
        (lambda world: world.instance("worker-2", State.SPAWNING), "worker-2, which is SPAWNING"),
        (lambda world: world.instance("worker-2", State.EXITED), "worker-2, which is EXITED"),
        (
            lambda world: setattr(child_of(world.fleet.instances[0]), "settled", False),
            "worker-1, which has not taken in everything that it was sent",
        ),
    ],
)
def test_what_an_upgrade_waits_for(change: object, waits_for: str | None) -> None:
    world = World()
    assert callable(change)
    change(world)
    assert upgrade.half_done(world.fleet) == waits_for


def test_children_of_a_role_have_not_ended() -> None:
    world = World(workers=2)
    world.fleet.instances[0].life = Life(State.EXITED)
    world.scheduler()
    assert [child.slot for child in world.fleet.children(Role.WORKER)] == ["worker-2"]
    assert [child.slot for child in world.fleet.children(Role.SCHEDULER)] == ["scheduler"]


def test_the_state_has_the_form_of_its_version() -> None:
    """Another set of names needs another STATE_VERSION: programs of before and after read each other's state."""
    state = upgrade.to_state(World().fleet, [])
    assert upgrade.STATE_VERSION == 7
    assert set(state) == {
        "desired", "daemon_id", "since_ms", "since_s", "mark", "ids", "instances", "history", "generations", "broker", "listeners",
        "scheduler_status", "notices", "operations", "tally", "record", "contents", "former", "last_number",
    }  # fmt: skip
    assert set(state["instances"][0]) == {
        "id", "slot", "role", "generation", "life", "outdated", "address", "leave_s", "leave_by", "reason", "child",
    }  # fmt: skip
