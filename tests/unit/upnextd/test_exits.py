"""What follows the end of a child."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.actors import NOW, World, child_of
from upnext.control.exits import ExitCode
from upnextd.rules import boot, plan
from upnextd.rules.plan import Exit, Mode, Role
from upnextd.rules.rollout import Phase
from upnextd.rules.slots import Event, Life, State
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import RunningJob
from upnextd.supervisor.broker_watch import BrokerWatch
from upnextd.supervisor.exits import ExitHandler
from upnextd.supervisor.fleet import Rollout
from upnextd.supervisor.instances import Instance, SchedulerStatus

JOB = RunningJob("ship:1", "ship", "default", "1-0", 2.0)


class Neighbours:
    """Stands for the messages and the reloads."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rollout_ends = False
        self.falls_back = False

    def send_alive_if_changed(self) -> None:
        self.calls.append("alive")

    def send_notices(self) -> None:
        self.calls.append("notices")

    def child_ended(self, _instance: Instance, _ended: Exit, _how: str) -> bool:
        return self.rollout_ends

    def fall_back(self, _why: str) -> bool:
        return self.falls_back


class Case:
    def __init__(self, workers: int = 1) -> None:
        self.world = World(workers)
        self.worker = self.world.fleet.instances[0]
        self.worker.life = Life(State.EXITED)
        self.child = child_of(self.worker)
        self.neighbours = Neighbours()
        some: Any = cast("Any", self.neighbours)
        world = self.world
        broker_watch = BrokerWatch(world.fleet, world.duties, world.log)
        self.exits = ExitHandler(
            world.fleet, world.duties, some, some, world.boot_wait, broker_watch, world.kernel, world.loop, world.log
        )

    def use_up_the_budget(self) -> None:
        """The next bad exit is a crash loop."""
        budget = Exit().budget
        self.world.fleet.record = plan.Record(bad_exits=((budget, NOW),) * 5)

    async def handle(self) -> list[tuple[str, Event]]:
        self.child.ready_at = None if not self.child.page.ran_job and not self.child.asked else self.child.ready_at
        await self.exits.handle(self.worker)
        return self.world.duties.posted


async def test_a_child_that_was_asked_to_end_is_replaced_at_once() -> None:
    case = Case()
    case.child.asked = True
    assert await case.handle() == [("worker-1", Event.AGAIN)]
    assert case.worker.child is None
    assert case.child.closed
    assert case.neighbours.calls == ["alive", "notices"]
    assert not case.world.log.cautions


async def test_a_bad_end_is_logged_and_backs_off() -> None:
    case = Case()
    case.world.kernel.status = ExitStatus(3, None)
    assert await case.handle() == [("worker-1", Event.BACK_OFF)]
    assert "exit:3" in case.world.log.cautions[0]
    history = case.world.fleet.history["worker-1"]
    assert history.restarts == 1
    assert history.last_exit is not None
    assert history.last_exit.code == 3


async def test_the_death_of_a_worker_is_kept_for_the_scheduler_with_its_jobs() -> None:
    case = Case()
    case.child.page.jobs = [JOB]
    case.child.page.over = [replace(JOB, job_id="ship:0")]
    case.child.page.ran_job = True
    case.child.written_stacks = ["File a"]
    case.world.kernel.status = ExitStatus(None, "SIGSEGV")
    await case.handle()
    [death] = case.world.fleet.pending_notices.pending
    assert (death.consumer, death.cause, death.charge, death.detail) == ("consumer-1", "signal:SIGSEGV", True, "File a")
    assert [job.job_id for job in death.started] == ["ship:1"]
    assert [job.job_id for job in death.ended] == ["ship:0"], "its end may not have been recorded"
    assert "ship:1" in case.world.log.cautions[0]


async def test_a_consumer_without_a_name_has_no_notice() -> None:
    case = Case()
    case.child.page.names = [""]
    await case.handle()
    assert not len(case.world.fleet.pending_notices)


async def test_jobs_that_a_stop_cuts_off_are_counted() -> None:
    case = Case()
    case.world.fleet.desired = replace(case.world.fleet.desired, mode=Mode.STOP)
    case.child.asked, case.child.abandoned = True, ["ship:2"]
    case.child.page.jobs = [JOB]
    await case.handle()
    assert case.world.fleet.ending.killed_jobs == ["ship:1", "ship:2"]
    assert case.world.fleet.history["worker-1"].restarts == 0, "it is not replaced"


async def test_the_status_of_a_dead_scheduler_is_forgotten() -> None:
    case = Case()
    scheduler = case.world.scheduler(state=State.EXITED)
    case.world.fleet.scheduler_status = SchedulerStatus(leader=True, connected=True)
    await case.exits.handle(scheduler)
    assert not case.world.fleet.scheduler_status.connected
    assert not len(case.world.fleet.pending_notices)


async def test_a_slot_whose_fork_failed_has_no_child_to_collect() -> None:
    case = Case()
    case.worker.child = None
    await case.exits.handle(case.worker)
    assert case.world.duties.posted == [("worker-1", Event.BACK_OFF)]
    assert not case.neighbours.calls
    assert not case.world.fleet.record.bad_exits, "the service is not to blame"


async def test_the_kernel_s_memory_limit_is_named() -> None:
    case = Case()
    case.world.kernel.status, case.world.kernel.kills = ExitStatus(None, "SIGKILL"), 1
    await case.handle()
    assert "oom" in case.world.log.cautions[0]
    assert case.world.fleet.pending_notices.pending[0].cause == "oom"


async def test_a_kill_by_the_supervisor_is_not_the_kernel_s() -> None:
    case = Case()
    case.world.kernel.status, case.world.kernel.kills = ExitStatus(None, "SIGKILL"), 1
    case.child.killed = True
    await case.handle()
    assert case.world.fleet.pending_notices.pending[0].cause == "signal:SIGKILL"


async def test_a_child_reaped_elsewhere_has_no_status() -> None:
    case = Case()
    case.world.kernel.reap_error = True
    await case.handle()
    assert case.world.fleet.pending_notices.pending[0].cause == "unknown"


class TestAChildThatReportsWhyItCannotStart:
    @pytest.mark.parametrize(
        ("code", "ends_with"),
        [(ExitCode.UNAVAILABLE, ExitCode.UNAVAILABLE), (ExitCode.FAILED, ExitCode.CRASH_LOOP)],
    )
    async def test_ends_a_daemon_that_has_not_started(self, code: ExitCode, ends_with: ExitCode) -> None:
        case = Case()
        case.world.fleet.booted = False
        case.child.boot_failure = (code, "no")
        await case.handle()
        assert case.world.duties.failures == [(ends_with, "no")]

    async def test_is_retried_later(self) -> None:
        case = Case()
        case.child.boot_failure = (ExitCode.UNAVAILABLE, "no broker")
        assert await case.handle() == [("worker-1", Event.BACK_OFF)]
        assert not case.world.duties.failures
        assert "no broker" in case.world.log.faults[0]


class TestAChildThatLacksSomethingOutside:
    async def test_waits_for_the_broker_while_the_start_may_take(self) -> None:
        case = Case()
        case.world.fleet.booted = False
        case.child.boot_failure, case.child.broker_away = (ExitCode.UNAVAILABLE, "no broker"), True
        assert await case.handle() == [("worker-1", Event.BACK_OFF)]
        assert case.world.fleet.waiting == "shop: waiting for the broker: no broker"
        assert case.world.notifier.extended == [boot.EXTENSION_S]
        assert not case.world.duties.failures

    async def test_gives_the_broker_up_after_the_boot_timeout(self) -> None:
        case = Case()
        case.world.fleet.booted = False
        case.world.loop.advance(5.0)
        case.child.boot_failure, case.child.broker_away = (ExitCode.UNAVAILABLE, "no broker"), True
        await case.handle()
        assert case.world.duties.failures == [(ExitCode.UNAVAILABLE, "no broker")]

    async def test_is_not_to_blame_for_a_lifespan_that_fails(self) -> None:
        case = Case()
        case.child.boot_failure, case.child.lifespan_failed = (ExitCode.FAILED, "database away"), True
        assert await case.handle() == [("worker-1", Event.BACK_OFF)]
        assert case.world.fleet.lifespan_fails
        assert case.world.fleet.waiting.endswith("what the service sets up: database away")
        assert not case.world.fleet.record.bad_exits
        assert not case.world.notifier.extended, "the daemon was ready: the service manager waits for nothing"

    async def test_breaks_a_reload_by_a_lifespan_that_fails(self) -> None:
        case = Case()
        case.world.fleet.rollouts.current = Rollout(1, 0, Phase.TRYING)
        case.child.boot_failure, case.child.lifespan_failed = (ExitCode.FAILED, "database away"), True
        await case.handle()
        assert not case.world.fleet.lifespan_fails


class TestACrashLoop:
    async def test_ends_the_daemon_when_nothing_works(self) -> None:
        case = Case()
        case.use_up_the_budget()
        assert await case.handle() == [("worker-1", Event.GIVE_UP)]
        assert case.world.duties.failures[0][0] is ExitCode.CRASH_LOOP

    async def test_is_answered_by_the_former_generation(self) -> None:
        case = Case()
        case.use_up_the_budget()
        case.neighbours.falls_back = True
        assert await case.handle() == [("worker-1", Event.GIVE_UP)]
        assert not case.world.duties.failures

    async def test_spares_those_that_work(self) -> None:
        case = Case(workers=2)
        case.world.fleet.record = plan.Record(bad_exits=((Exit().budget, NOW),) * 6)
        child_of(case.world.fleet.instances[1]).page.ran_job = True
        assert await case.handle() == [("worker-1", Event.BACK_OFF)]
        assert not case.world.duties.failures
        assert "the others go on" in case.world.log.faults[0]

    @pytest.mark.parametrize(("role", "spared"), [(Role.API, True), (Role.SCHEDULER, True), (Role.WORKER, False)])
    async def test_spares_an_api_that_works_but_for_workers_that_do_not(self, role: Role, spared: bool) -> None:
        case = Case()
        case.worker.role = role
        case.world.fleet.record = plan.Record(bad_exits=((Exit(role=role).budget, NOW),) * 6)
        child_of(case.world.instance("api-front-2", role=Role.API)).page.ran_job = True
        await case.handle()
        assert [code for code, _ in case.world.duties.failures] == ([] if spared else [ExitCode.CRASH_LOOP])


async def test_the_end_of_a_child_on_trial_is_the_reload_s() -> None:
    case = Case()
    case.neighbours.rollout_ends = True
    assert await case.handle() == [("worker-1", Event.AGAIN)]
    assert not case.world.fleet.record.bad_exits


async def test_a_child_of_an_unwanted_generation_counts_for_nothing() -> None:
    case = Case()
    case.worker.generation = 9
    assert await case.handle() == [("worker-1", Event.AGAIN)]
    assert not case.world.fleet.record.bad_exits


async def test_an_end_that_takes_too_long_is_given_up() -> None:
    case = Case()
    case.worker.exit_task = asyncio.create_task(asyncio.Event().wait())
    case.exits.give_up(case.worker)
    with pytest.raises(asyncio.CancelledError):
        await case.worker.exit_task
    assert case.worker.child is None
    assert case.child.closed
