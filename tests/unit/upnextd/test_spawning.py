"""How a child is ordered, and what the template's report of it leads to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.actors import World, child_of
from upnextd.rules import boot, plan
from upnextd.rules.plan import Mode, Role
from upnextd.rules.rollout import Phase
from upnextd.rules.slots import Event, Life, State
from upnextd.settings import Flags, Settings, build
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.scoreboard import WorkerShape
from upnextd.supervisor.children import Child
from upnextd.supervisor.fleet import Rollout
from upnextd.supervisor.spawning import Spawner


class Messages:
    """Stands for the messages of children."""

    def __init__(self) -> None:
        self.initial: list[Child] = []

    def send_initial_state(self, child: Child) -> None:
        self.initial.append(child)

    def on_message(self, *_: object) -> None:
        return

    def on_output(self, *_: object) -> None:
        return


def settings_of(tmp_path: Path) -> Settings:
    return build(Flags("shop.py", state_dir=str(tmp_path)), {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})


class Case:
    """`real_loop`: where real descriptors are made."""

    def __init__(self, settings: Settings, *, real_loop: bool = False) -> None:
        self.world = World()
        self.worker = self.world.fleet.instances[0]
        self.messages = Messages()
        some: Any = cast("Any", self.messages)
        loop: Any = asyncio.get_running_loop() if real_loop else self.world.loop
        kernel: Any = LinuxKernel() if real_loop else self.world.kernel
        self.template = self.world.template(1, shapes=(WorkerShape("shop", 2, ("ship",)),))
        world = self.world
        self.spawner = Spawner(world.fleet, world.duties, settings, some, world.boot_wait, kernel, loop, world.log)

    def order(self, instance: Any = None) -> Any:
        """Order a child; -> the order that the template got."""
        instance = instance or self.worker
        instance.child = None
        self.spawner.fork(instance)
        if instance.child is not None:
            instance.child.close(writers_gone=False)
        return self.template.orders[-1]


class TestAnOrder:
    async def test_counts_incarnations(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        assert case.order().incarnation == 1
        assert case.order().incarnation == 2
        assert not case.messages.initial

    async def test_of_a_scheduler_begins_with_what_it_must_know(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        order = case.order(case.world.instance("scheduler", State.SPAWNING, role=Role.SCHEDULER, with_child=False))
        assert order.role == "scheduler"
        assert len(case.messages.initial) == 1

    @pytest.mark.parametrize(
        ("mode", "paused"), [(Mode.RUN, False), (Mode.PAUSE, True), (Mode.DRAIN, True), (Mode.DRAIN_EXIT, True)]
    )
    async def test_says_whether_it_starts_paused(self, tmp_path: Path, mode: Mode, paused: bool) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        case.world.fleet.desired = replace(case.world.fleet.desired, mode=mode)
        assert case.order().paused is paused

    async def test_an_api_takes_connections_by_an_order_of_its_own(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        instance = case.world.instance("api-front-1", State.SPAWNING, role=Role.API, with_child=False)
        assert case.order(instance).paused

    @pytest.mark.parametrize(("booted", "timeout_s"), [(False, 5.0), (True, boot.TRY_S)])
    async def test_waits_longer_for_the_broker_later(self, tmp_path: Path, booted: bool, timeout_s: float) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        case.world.fleet.booted = booted
        assert case.order().boot_timeout_s == timeout_s

    async def test_names_a_trial_and_the_quarantine(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        assert not case.order().provisional
        case.world.fleet.rollouts.current = Rollout(1, 0, Phase.TRYING)
        assert case.order().provisional
        assert not case.order().quarantine
        assert case.order(case.world.instance(plan.QUARANTINE, State.SPAWNING, with_child=False)).quarantine

    async def test_that_the_template_refuses_fails(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path), real_loop=True)
        case.template.takes_orders = False
        case.worker.child = None
        case.spawner.fork(case.worker)
        await asyncio.sleep(0)
        assert case.world.duties.posted == [("worker-1", Event.FORK_FAILED)]
        assert case.world.fleet.history["worker-1"].incarnations == 0
        child = cast("Any", case.worker).child
        child.close(writers_gone=False)

    def test_without_a_template_fails(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        case.template.retired = True
        case.spawner.fork(case.worker)
        case.world.loop.advance()
        assert case.world.duties.posted == [("worker-1", Event.FORK_FAILED)]


class TestAReport:
    def test_of_a_pid(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        child = child_of(case.worker)
        child.pid = None
        case.spawner.forked(child.token, 77)
        assert child.pid == 77
        assert case.world.duties.posted == [("worker-1", Event.FORKED)]

    def test_that_comes_too_late_ends_the_process(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        case.spawner.forked(999, 77)
        case.worker.life = Life(State.EXITED)
        case.spawner.forked(child_of(case.worker).token, 78)
        assert case.world.kernel.killed == [77, 78]
        assert not case.world.duties.posted

    @pytest.mark.parametrize("blameless", [True, False])
    def test_of_a_failed_fork(self, tmp_path: Path, blameless: bool) -> None:
        case = Case(settings_of(tmp_path))
        child = child_of(case.worker)
        child.pid = None
        case.spawner.fork_failed(child.token, "no memory", blameless=blameless)
        assert child.died_in_fork is not blameless
        assert case.world.duties.posted == [("worker-1", Event.FORK_FAILED)]

    def test_of_a_failed_fork_after_its_pid_is_void(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        case.spawner.fork_failed(child_of(case.worker).token, "killed", blameless=False)
        assert not case.world.duties.posted


class TestWatching:
    def watch(self, case: Case, error: OSError | None) -> None:
        def fail(_pid: int, _on_gone: object) -> None:
            if error is not None:
                raise error

        child = child_of(case.worker)
        cast("Any", child).watch = fail
        case.spawner.watch(cast("Child", child))
        case.world.loop.advance()

    def test_begins_a_life(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        self.watch(case, None)
        assert case.world.duties.events[0][0] == "child_started"

    def test_one_that_is_reaped_already_is_gone(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        self.watch(case, ProcessLookupError())
        assert case.world.duties.posted == [("worker-1", Event.GONE)]
        assert not case.world.kernel.killed

    def test_one_that_cannot_be_watched_is_killed(self, tmp_path: Path) -> None:
        case = Case(settings_of(tmp_path))
        pid = child_of(case.worker).pid
        self.watch(case, OSError(24, "Too many open files"))
        assert case.world.kernel.killed == [pid]
        assert child_of(case.worker).pid is None
        assert case.world.duties.posted == [("worker-1", Event.GONE)]
