"""What the control socket's methods edit, and how they report how far that is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.actors import NOW, World, child_of
from tests.unit.upnextd.test_spawning import settings_of
from upnext.control import protocol
from upnext.control.protocol import ErrorCode
from upnextd.control.commands import ControlCommands
from upnextd.control.server import Client, CommandError
from upnextd.rules import modes, plan
from upnextd.rules.modes import Request
from upnextd.rules.plan import Mode, Role
from upnextd.rules.slots import Life, State
from upnextd.supervisor.fleet import Rollout
from upnextd.supervisor.instances import SlotHistory
from upnextd.supervisor.operations import Operation, Progress
from upnextd.supervisor.requests import Requests


class FakeClient:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class Neighbours:
    """Stands for reloads, templates, companions, the hang watch and systemd."""

    beside: tuple[()] = ()

    def __init__(self, world: World) -> None:
        self.calls: list[str] = []
        self._world = world

    def begin(self) -> Rollout:
        rollout = Rollout(2, 1)
        self._world.fleet.rollouts.queued = rollout
        return rollout

    def progress(self, _rollout: Rollout) -> Progress:
        return Progress("importing")

    def abort(self, why: str) -> None:
        self.calls.append(f"abort: {why}")

    def check_now(self) -> None:
        self.calls.append("checked")

    async def stacks(self, _child: Any) -> str:
        return "File a"

    def stopping(self) -> None:
        return


class Case:
    def __init__(self, tmp_path: Path, workers: int = 2) -> None:
        self.world = World(workers)
        world = self.world
        self.client = FakeClient()
        self.neighbours = Neighbours(world)
        some: Any = cast("Any", self.neighbours)
        requests = Requests(world.fleet, world.duties, some, some, world.log, world.loop.time, 30.0)
        self.commands = ControlCommands(
            settings_of(tmp_path),
            world.fleet,
            world.duties,
            requests,
            some,
            some,
            some,
            world.loop.time,
        )

    def ask(self, method: str, **params: Any) -> Any:
        request = protocol.Request(method=method, params=params, id=1)
        return self.commands.answer(request, params, cast("Client", self.client))

    def operation(self, method: str, **params: Any) -> Operation:
        """Ask for a mutation; -> its operation, checked once."""
        operation = self.world.fleet.operations.find(self.ask(method, **params)["op_id"])
        assert operation is not None
        operation.check()
        return operation

    def refusal(self, method: str, **params: Any) -> ErrorCode:
        with pytest.raises(CommandError) as caught:
            self.ask(method, **params)
        return caught.value.code

    def set_states(self, *states: State, drained: bool = False) -> None:
        for instance, state in zip(self.world.fleet.instances, states, strict=True):
            instance.life = Life(state, NOW, drained=drained)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


MUTATIONS = [
    ("pause", {}),
    ("drain", {"exit": False}),
    ("drain", {"exit": True}),
    ("stop", {"now": False}),
    ("stop", {"now": True}),
    ("scale", {"workers": 4}),
    ("restart", {"slot": None}),
]


@pytest.mark.parametrize(("method", "params"), MUTATIONS)
def test_a_mutation_edits_the_desired_state_and_posts_nothing(case: Case, method: str, params: dict[str, Any]) -> None:
    before = case.world.fleet.desired
    case.operation(method, **params)
    assert case.world.fleet.desired != before
    assert not case.world.duties.posted


def test_every_method_that_the_protocol_has_is_answered(case: Case) -> None:
    assert set(case.commands._methods) == set(protocol.METHODS)


def test_pause_and_resume_end_when_every_worker_follows(case: Case) -> None:
    pause = case.operation("pause")
    assert pause.progress == Progress("0 of 2 workers paused")
    case.set_states(State.PAUSED, State.BACKOFF)
    pause.check()
    assert pause.progress == Progress("paused", done=True)
    resume = case.operation("resume")
    assert resume.progress == Progress("0 of 2 workers running")
    case.set_states(State.READY, State.READY)
    resume.check()
    assert resume.progress == Progress("running", done=True)


@pytest.mark.parametrize(("ends", "text"), [(False, "drained"), (True, "drained; the daemon ends")])
def test_a_drain_ends_when_nothing_runs(case: Case, ends: bool, text: str) -> None:
    drain = case.operation("drain", exit=ends)
    assert not drain.progress.done
    case.set_states(State.PAUSED, State.PAUSED, drained=True)
    drain.check()
    assert drain.progress == Progress(text, done=True)
    assert case.world.fleet.desired.mode is (Mode.DRAIN_EXIT if ends else Mode.DRAIN), "the check itself edits nothing"


def test_a_drain_during_a_reload_is_refused(case: Case) -> None:
    case.world.fleet.rollouts.queued = Rollout(2, 1)
    assert case.refusal("drain", exit=False) is ErrorCode.CONFLICT
    assert case.world.fleet.desired.mode is Mode.RUN


@pytest.mark.parametrize(("method", "params"), [*MUTATIONS, ("resume", {}), ("reload", {"abort": False})])
def test_what_the_table_of_modes_refuses_is_a_conflict(case: Case, method: str, params: dict[str, Any]) -> None:
    case.ask("stop", now=True)
    by_name = {
        "pause": Request.PAUSE,
        "resume": Request.RESUME,
        "scale": Request.SCALE,
        "restart": Request.RESTART,
        "reload": Request.RELOAD,
        "drain": Request.DRAIN_EXIT if params.get("exit") else Request.DRAIN,
        "stop": Request.STOP_NOW if params.get("now") else Request.STOP,
    }
    if modes.decide(Mode.STOP_NOW, by_name[method]).refusal is None:
        case.ask(method, **params)
    else:
        assert case.refusal(method, **params) is ErrorCode.CONFLICT


def test_scale_ends_when_the_workers_are_ready_and_the_others_gone(case: Case) -> None:
    scale = case.operation("scale", workers=1)
    assert scale.progress.text == "2 of 1 workers ready, 1 leaving"
    case.world.fleet.instances.pop()
    scale.check()
    assert scale.progress == Progress("1 of 1 workers ready", done=True)


def test_scale_ends_where_the_service_has_no_workers(case: Case) -> None:
    case.world.fleet.instances.clear()
    case.world.fleet.desired = replace(case.world.fleet.desired, has_workers=False)
    scale = case.operation("scale", workers=3)
    assert scale.progress == Progress("0 of 0 workers ready", done=True)


class TestRestart:
    def test_ends_when_the_successor_serves_and_the_old_one_is_gone(self, case: Case) -> None:
        old = case.world.fleet.instances[0]
        restart = case.operation("restart", slot="worker-1")
        assert restart.progress == Progress("0 of 1 restarted")
        case.world.fleet.instances.remove(old)
        restart.check()
        assert restart.progress == Progress("1 of 1 restarted")
        case.world.instance("worker-1")
        restart.check()
        assert restart.progress == Progress("restarted", done=True)

    def test_of_a_slot_that_is_scaled_away_ends(self, case: Case) -> None:
        old = case.world.fleet.instances[1]
        restart = case.operation("restart", slot="worker-2")
        case.ask("scale", workers=1)
        case.world.fleet.instances.remove(old)
        restart.check()
        assert restart.progress.done

    def test_of_all_spares_the_quarantine(self, case: Case) -> None:
        quarantine = case.world.instance(plan.QUARANTINE)
        case.operation("restart", slot=None)
        assert not case.world.fleet.is_outdated(quarantine)

    def test_of_all_is_of_the_apis_too(self, case: Case) -> None:
        world = case.world
        world.fleet.desired = replace(world.fleet.desired, apis=(("front", 2),))
        apis = [world.instance(f"api-front-{number}", role=Role.API) for number in (1, 2)]
        leaving = world.instance("api-front-1", role=Role.API)
        leaving.leave_by = NOW
        restart = case.operation("restart", slot=None)
        assert [world.fleet.is_outdated(api) for api in apis] == [True, True]
        assert restart.progress == Progress("0 of 4 restarted")

    def test_of_an_unknown_slot_names_those_that_there_are(self, case: Case) -> None:
        with pytest.raises(CommandError, match="there are: worker-1, worker-2"):
            case.ask("restart", slot="worker-9")

    def test_prefers_the_successor_of_a_slot(self, case: Case) -> None:
        case.world.fleet.instances[0].outdated = True
        newer = case.world.instance("worker-1")
        case.operation("restart", slot="worker-1")
        assert dict(case.world.fleet.desired.renewed)["worker-1"] == newer.id


class TestReload:
    def test_is_followed_by_its_number(self, case: Case) -> None:
        reload = case.operation("reload", abort=False)
        assert (reload.key, reload.progress.text) == ("reload 2", "importing")

    def test_that_is_not_under_way_cannot_be_aborted(self, case: Case) -> None:
        assert case.refusal("reload", abort=True) is ErrorCode.CONFLICT
        assert not case.neighbours.calls

    def test_is_aborted(self, case: Case) -> None:
        case.ask("reload", abort=False)
        abort = case.operation("reload", abort=True)
        assert case.neighbours.calls == ["abort: aborted by an operator"]
        assert abort.progress == Progress("aborted: generation 1 goes on", done=True)


class TestWait:
    async def test_of_an_unknown_operation_is_refused(self, case: Case) -> None:
        with pytest.raises(CommandError) as caught:
            await case.ask("wait", op_id="nothing")
        assert caught.value.code is ErrorCode.NO_SUCH_OPERATION

    async def test_sends_progress_and_answers_at_the_end(self, case: Case) -> None:
        operation = case.operation("pause")
        waiting = asyncio.ensure_future(case.ask("wait", op_id=operation.op_id))
        await asyncio.sleep(0)
        case.set_states(State.PAUSED, State.PAUSED)
        operation.check()
        answer = await waiting
        assert (answer["ok"], answer["text"]) == (True, "paused")
        assert len(case.client.sent) == 2
        assert not operation.watchers

    async def test_that_is_cancelled_watches_no_more(self, case: Case) -> None:
        operation = case.operation("pause")
        waiting = asyncio.ensure_future(case.ask("wait", op_id=operation.op_id))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not operation.watchers
        assert not operation.ended.is_set(), "it goes on without its client"


class TestDump:
    async def test_has_the_stacks_of_a_slot(self, case: Case) -> None:
        answer = await case.ask("dump", slot="worker-1")
        assert (answer["slot"], answer["stacks"]) == ("worker-1", "File a")

    async def test_has_what_a_slot_printed_also_without_a_process(self, case: Case) -> None:
        case.world.fleet.history.setdefault("worker-1", SlotHistory()).output.add("at", 7, "hello")
        case.world.fleet.instances[0].child = None
        answer = await case.ask("dump", slot="worker-1", output=True)
        assert answer["lines"] == [{"at": "at", "pid": 7, "text": "hello"}]

    async def test_needs_a_process(self, case: Case) -> None:
        case.world.fleet.instances[0].child = None
        with pytest.raises(CommandError, match="no process now"):
            await case.ask("dump", slot="worker-1")


def test_events_go_to_subscribers_only(case: Case) -> None:
    case.commands.publish("mode", {"mode": "paused"})
    assert not case.client.sent
    case.ask("subscribe")
    case.commands.publish("mode", {"mode": "paused"})
    assert len(case.client.sent) == 1
    case.commands.client_left(cast("Client", case.client))
    case.commands.publish("mode", {"mode": "paused"})
    assert len(case.client.sent) == 1


class TestStatus:
    def test_checks_heartbeats_and_has_every_child(self, case: Case) -> None:
        case.world.scheduler()
        case.world.instance("worker-10")
        case.world.fleet.missing[1] = "lost"
        status = case.ask("status")
        assert case.neighbours.calls == ["checked"]
        assert status["problem"].startswith("generation 1 has no template: lost")
        slots = [child["slot"] for child in status["children"]]
        assert slots == ["worker-1", "worker-2", "worker-10", "scheduler", "template"]
        assert (status["ready_workers"], status["desired_workers"], status["mode"]) == (3, 2, "running")

    def test_of_a_slot_without_a_process_has_no_pid(self, case: Case) -> None:
        case.set_states(State.BACKOFF, State.READY)
        case.world.fleet.instances[0].child = None
        first = case.ask("status")["children"][0]
        assert (first["slot"], first["state"], first["pid"], first["uptime_s"]) == ("worker-1", "BACKOFF", None, None)

    def test_of_a_child_has_its_age_and_heartbeat(self, case: Case) -> None:
        case.world.loop.advance(2.0)
        child_of(case.world.fleet.instances[1]).ready_at = None
        first, second = case.ask("status")["children"][:2]
        assert (first["uptime_s"], first["heartbeat_age_s"]) == (2.0, 2.0)
        assert second["heartbeat_age_s"] is None
