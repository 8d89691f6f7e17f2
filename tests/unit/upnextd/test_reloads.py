"""How a reload goes on, and what it asks for at each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.actors import NOW, World, child_of
from upnext.control.exits import ExitCode
from upnext.errors import BrokerUnavailableError
from upnextd.rules.plan import Exit, Mode, Role
from upnextd.rules.rollout import OVER, Phase
from upnextd.rules.slots import Event, Life, State
from upnextd.supervisor.fleet import Rollout
from upnextd.supervisor.generations import Generation, ImportFailure
from upnextd.supervisor.generations import Phase as TemplatePhase
from upnextd.supervisor.reloads import Reloads

CANARY_S = 2.0


class Case:
    def __init__(self) -> None:
        self.world = World()
        self.world.scheduler()
        self.started: list[int] = []
        self.can_start = True
        self.broker_error: Exception | None = None
        self.reloads = Reloads(
            self.world.fleet,
            self.world.duties,
            self.world.kernel,
            self.world.loop,
            self.world.log,
            self._ensure_broker,
            self._start_template,
            CANARY_S,
        )

    def _start_template(self, number: int) -> bool:
        self.started.append(number)
        if self.can_start:
            self.world.template(number)
        return self.can_start

    async def _ensure_broker(self, _generation: Generation) -> Exception | None:
        return self.broker_error

    async def imported(self, rollout: Rollout) -> None:
        await self.reloads.imported(self.world.fleet.generations[rollout.generation])

    async def until(self, phase: Phase) -> Rollout:
        """A rollout that has come as far as that."""
        world = self.world
        rollout = self.reloads.begin()
        if phase is Phase.IMPORTING:
            return rollout
        await self.imported(rollout)
        if phase is Phase.TRYING:
            return rollout
        world.instance("worker-1", generation=2)
        world.loop.advance(CANARY_S)
        child_of(world.fleet.instances[-1]).heart = replace(
            child_of(world.fleet.instances[-1]).heart, changed_at=world.loop.now
        )
        self.reloads.check()
        if phase is Phase.ROLLING:
            return rollout
        for _ in (Phase.SETTLING, Phase.SWITCHING_APIS, Phase.SWITCHING):
            self.reloads.check()
        if phase is Phase.SWITCHING:
            return rollout
        world.scheduler(generation=2)
        self.reloads.check()
        return rollout


@pytest.mark.parametrize(
    ("is_open", "missing", "lifespan_fails", "begins"),
    [
        (True, {}, False, False),
        (True, {1: "lost"}, False, True),
        (True, {}, True, True),
        (False, {1: "lost"}, True, False),
    ],
)
def test_a_reload_waits_for_the_start_unless_it_is_the_cure(
    is_open: bool, missing: dict[int, str], lifespan_fails: bool, begins: bool
) -> None:
    case = Case()
    fleet = case.world.fleet
    fleet.booted, fleet.is_open, fleet.missing, fleet.lifespan_fails = False, is_open, missing, lifespan_fails
    rollout = case.reloads.begin()
    assert rollout.phase is (Phase.IMPORTING if begins else Phase.QUEUED)


async def test_a_reload_that_another_has_replaced_names_the_newer_one() -> None:
    case = Case()
    rollout = await case.until(Phase.COMMITTED)
    case.world.fleet.desired = replace(case.world.fleet.desired, generation=3)
    progress = case.reloads.progress(rollout)
    assert progress.done
    assert progress.data == {"generation": 3}


async def test_a_reload_goes_through_every_phase() -> None:
    case = Case()
    fleet = case.world.fleet
    rollout = await case.until(Phase.IMPORTING)
    assert (rollout.phase, case.started) == (Phase.IMPORTING, [2])
    case = Case()
    fleet = case.world.fleet
    rollout = await case.until(Phase.TRYING)
    assert (rollout.phase, fleet.desired.canary, fleet.desired.generation) == (Phase.TRYING, 2, 1)
    case = Case()
    fleet = case.world.fleet
    rollout = await case.until(Phase.ROLLING)
    assert (rollout.phase, fleet.desired.canary, fleet.desired.generation) == (Phase.ROLLING, None, 2)
    case = Case()
    fleet = case.world.fleet
    rollout = await case.until(Phase.SWITCHING)
    assert (rollout.phase, fleet.desired.scheduler_generation) == (Phase.SWITCHING, 2)
    case = Case()
    fleet = case.world.fleet
    rollout = await case.until(Phase.COMMITTED)
    assert rollout.phase is Phase.COMMITTED
    assert fleet.rollouts.former == 1
    assert fleet.counters.reloads["ok"] == 1
    assert fleet.template(1) is not None, "it is kept to fall back to"


async def test_a_canary_must_stay_ready() -> None:
    case = Case()
    rollout = await case.until(Phase.TRYING)
    case.world.instance("worker-1", generation=2)
    case.world.loop.advance(CANARY_S - 0.1)
    case.reloads.check()
    assert rollout.phase is Phase.TRYING


async def test_a_canary_without_a_heartbeat_is_not_proven() -> None:
    case = Case()
    rollout = await case.until(Phase.TRYING)
    case.world.instance("worker-1", generation=2)
    case.world.loop.advance(CANARY_S + 10.0)
    case.reloads.check()
    assert rollout.phase is Phase.TRYING


def test_a_reload_waits_for_the_start_of_the_daemon() -> None:
    case = Case()
    case.world.fleet.booted = False
    rollout = case.reloads.begin()
    assert rollout.phase is Phase.QUEUED
    assert case.reloads.progress(rollout).text == "generation 2: waits for the end of the daemon's start"
    case.world.fleet.booted = True
    case.reloads.check()
    assert rollout.phase is Phase.IMPORTING


async def test_a_newer_reload_replaces_one_on_trial() -> None:
    case = Case()
    older = await case.until(Phase.TRYING)
    newer = case.reloads.begin()
    assert (older.phase, newer.phase) == (Phase.SUPERSEDED, Phase.IMPORTING)
    assert case.world.fleet.desired.canary is None
    assert case.world.fleet.generations[2].retired


async def test_a_newer_reload_waits_for_one_that_rolls() -> None:
    case = Case()
    older = await case.until(Phase.ROLLING)
    newer, newest = case.reloads.begin(), case.reloads.begin()
    assert older.phase not in OVER
    assert (newer.phase, newest.phase) == (Phase.SUPERSEDED, Phase.QUEUED)


class TestAFailure:
    def check(self, case: Case, rollout: Rollout, why: str) -> None:
        assert rollout.phase is Phase.FAILED
        assert why in rollout.why
        assert case.world.fleet.desired.generation == 1
        assert case.world.fleet.desired.scheduler_generation == 1
        assert case.world.fleet.desired.canary is None
        progress = case.reloads.progress(rollout)
        assert (progress.done, progress.ok) == (True, False)

    def test_of_the_template_s_start(self) -> None:
        case = Case()
        case.can_start = False
        self.check(case, case.reloads.begin(), "can't be started")

    async def test_of_the_import(self) -> None:
        case = Case()
        rollout = await case.until(Phase.IMPORTING)
        case.reloads.import_failed(case.world.fleet.generations[2], ImportFailure("shop.py: no", "Traceback"))
        self.check(case, rollout, "shop.py: no")
        assert "Traceback" in case.reloads.progress(rollout).text

    async def test_of_the_broker(self) -> None:
        case = Case()
        case.broker_error = BrokerUnavailableError("no server")
        self.check(case, await case.until(Phase.TRYING), "no server")

    async def test_of_the_template(self) -> None:
        case = Case()
        rollout = await case.until(Phase.TRYING)
        case.reloads.template_gone(case.world.fleet.generations[2])
        self.check(case, rollout, "its template ended")

    async def test_of_the_canary(self) -> None:
        case = Case()
        rollout = await case.until(Phase.TRYING)
        canary = case.world.instance("worker-1", generation=2)
        # A proven child counts, too, as long as it is the canary.
        assert case.reloads.child_ended(canary, Exit(ready_for_s=9.0), "exit:3")
        self.check(case, rollout, "exit:3")

    async def test_of_a_later_child(self) -> None:
        case = Case()
        rollout = await case.until(Phase.ROLLING)
        child = case.world.fleet.instances[-1]
        assert not case.reloads.child_ended(child, Exit(asked=True), "stopped")
        assert not case.reloads.child_ended(child, Exit(ran_job=True), "exit:3")
        assert case.reloads.child_ended(child, Exit(), "exit:3")
        self.check(case, rollout, "before it was ready")

    async def test_of_an_old_child_is_none(self) -> None:
        case = Case()
        rollout = await case.until(Phase.TRYING)
        assert not case.reloads.child_ended(case.world.fleet.instances[0], Exit(), "exit:3")
        assert rollout.phase is Phase.TRYING

    async def test_lets_old_children_stay(self) -> None:
        case = Case()
        rollout = await case.until(Phase.ROLLING)
        old = case.world.fleet.instances[0]
        old.leave_by, old.reason = NOW, "reloaded"
        case.reloads.abort("aborted by an operator")
        self.check(case, rollout, "aborted by an operator")
        assert (old.leave_by, old.reason) == (None, None)


class TestACrashLoop:
    def test_without_another_generation_has_no_way_out(self) -> None:
        assert not Case().reloads.fall_back("crash loop")

    @pytest.mark.parametrize(
        "facts", [{"phase": TemplatePhase.GONE}, {"preload": False}, {"phase": TemplatePhase.IMPORTING}]
    )
    def test_with_an_unusable_former_template_has_no_way_out(self, facts: dict[str, Any]) -> None:
        case = Case()
        case.world.template(7, **facts)
        case.world.fleet.rollouts.former = 7
        assert not case.reloads.fall_back("crash loop")

    async def test_goes_back_to_the_former_generation(self) -> None:
        case = Case()
        await case.until(Phase.COMMITTED)
        assert case.reloads.fall_back("crash loop")
        fleet = case.world.fleet
        assert (fleet.desired.generation, fleet.desired.scheduler_generation) == (1, 1)
        assert fleet.generations[2].retired
        assert fleet.generations[1].made_ms == 5_000, "its definitions win from now on"
        assert not case.reloads.fall_back("crash loop"), "once"

    async def test_ends_the_daemon_when_the_reload_under_way_fails(self) -> None:
        case = Case()
        await case.until(Phase.IMPORTING)
        assert case.reloads.fall_back("crash loop")
        assert not case.world.duties.failures
        case.reloads.abort("aborted")
        assert case.world.duties.failures == [(ExitCode.CRASH_LOOP, "crash loop")]

    async def test_is_retried_when_the_reload_fails_and_others_work(self) -> None:
        case = Case()
        case.world.fleet.instances[0].life = Life(State.READY)
        child_of(case.world.fleet.instances[0]).page.ran_job = True
        case.world.instance("worker-2", State.FAILED, with_child=False)
        await case.until(Phase.IMPORTING)
        case.reloads.fall_back("crash loop")
        case.reloads.abort("aborted")
        assert ("worker-2", Event.CLEAR) in case.world.duties.posted
        assert not case.world.duties.failures


async def test_old_children_are_waited_for_unless_the_daemon_stops() -> None:
    case = Case()
    rollout = await case.until(Phase.COMMITTED)
    assert not case.reloads.progress(rollout).done
    case.world.fleet.desired = replace(case.world.fleet.desired, mode=Mode.STOP)
    assert case.reloads.progress(rollout).done
    assert {one.role for one in case.world.fleet.instances if one.generation == 1} == {Role.WORKER, Role.SCHEDULER}


def test_an_import_of_another_generation_changes_nothing() -> None:
    case = Case()
    other = cast("Generation", case.world.template(9))
    case.reloads.import_failed(other, ImportFailure("no"))
    case.reloads.template_gone(other)
    assert case.world.fleet.rollouts.current is None
