"""Templates: when one is started, accepted, replaced or given up, and what its reports lead to."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.actors import NOW, FakeGeneration, World
from tests.unit.upnextd.test_spawning import settings_of
from upnext.control.exits import ExitCode
from upnext.errors import BrokerUnavailableError
from upnextd.rules.plan import Mode
from upnextd.rules.slots import Event, State
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.generations import Generation, ImportFailure, Phase
from upnextd.supervisor.lateness import Lateness
from upnextd.supervisor.templates import STALLED_S, Templates


class Neighbours:
    """Stands for reloads, spawner and companions."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broker_error: Exception | None = None
        self.child_env: dict[str, str] = {}

    def imported(self, _generation: Generation) -> Coroutine[Any, Any, None]:
        self.calls.append("reload imported")
        return self._nothing()

    async def _nothing(self) -> None:
        return

    def import_failed(self, _generation: Generation, _failure: ImportFailure) -> None:
        self.calls.append("reload import failed")

    def template_gone(self, _generation: Generation) -> None:
        self.calls.append("reload template gone")

    async def ensure_broker(self, _generation: Generation) -> Exception | None:
        return self.broker_error

    def start_beside(self) -> None:
        self.calls.append("beside")


class Case:
    def __init__(self, tmp_path: Path) -> None:
        self.world = World()
        self.neighbours = Neighbours()
        some: Any = cast("Any", self.neighbours)
        world = self.world
        settings = settings_of(tmp_path)
        self.service = settings.service
        self.template = cast("FakeGeneration", world.fleet.generations[1])
        self.templates = Templates(
            world.fleet,
            world.duties,
            settings,
            Lateness(world.fleet, world.log, world.loop.time),
            some,
            some,
            some,
            world.kernel,
            world.loop,
            world.log,
        )
        self.started: list[tuple[int, float]] = []
        self.templates.start = self._start

    def _start(self, number: int) -> Generation | None:
        self.started.append((number, self.world.loop.now - NOW))
        return cast("Generation", self.template)

    def gone(self, template: FakeGeneration | None = None) -> None:
        one = template or self.template
        one.phase, one.living = Phase.GONE, False
        self.templates.template_gone(cast("Generation", one), ExitStatus(None, "SIGKILL"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


class TestTheFirstImport:
    async def test_opens_the_daemon(self, case: Case) -> None:
        case.world.fleet.is_open = False
        case.templates.imported(cast("Generation", case.template))
        await case.world.duties.run_owned()
        assert case.world.fleet.is_open
        assert case.neighbours.calls == ["beside"]

    async def test_without_a_broker_ends_it(self, case: Case) -> None:
        case.world.fleet.is_open = False
        case.neighbours.broker_error = BrokerUnavailableError("no server")
        case.templates.imported(cast("Generation", case.template))
        await case.world.duties.run_owned()
        assert case.world.duties.failures == [(ExitCode.UNAVAILABLE, "no server")]
        assert not case.world.fleet.is_open

    def test_that_fails_ends_it(self, case: Case) -> None:
        case.world.fleet.is_open = False
        failure = ImportFailure("NameError: no", "Traceback")
        case.templates.import_failed(cast("Generation", case.template), failure)
        assert case.world.duties.failures == [(ExitCode.CONFIG, f"can't import {case.service}: NameError: no")]
        assert case.world.log.lines[0][2] == "Traceback"


async def test_what_a_generation_declares_stays_known_when_its_template_loads_other_code(case: Case) -> None:
    case.templates.imported(cast("Generation", case.template))
    other = case.world.template(1, content="other", declared="other")
    case.templates.imported(cast("Generation", other))
    await case.world.duties.run_owned()
    assert other.retired
    assert other.declared == "what it declares"


async def test_a_later_import_is_the_reload_s(case: Case) -> None:
    second = case.world.template(2, warnings=["old name"])
    case.templates.imported(cast("Generation", second))
    await case.world.duties.run_owned()
    assert case.neighbours.calls == ["reload imported"]
    assert case.world.log.cautions == ["old name"]
    case.templates.import_failed(cast("Generation", second), ImportFailure("no"))
    assert case.neighbours.calls[1:] == ["reload import failed"]


def test_the_import_of_a_retired_template_is_no_failure(case: Case) -> None:
    case.template.retired = True
    case.templates.import_failed(cast("Generation", case.template), ImportFailure("killed"))
    assert not case.world.log.faults
    assert not case.neighbours.calls


class TestOneThatEnds:
    def test_is_replaced_at_once_when_it_had_served(self, case: Case) -> None:
        case.world.loop.advance(60.0)
        case.gone()
        case.world.loop.advance()
        assert case.started == [(1, 60.0)]

    def test_is_replaced_after_longer_and_longer_pauses(self, case: Case) -> None:
        for _ in range(3):
            case.template.started_at = case.world.loop.now
            case.gone()
            case.world.loop.advance(100.0)
        assert [at for _, at in case.started] == [1.0, 102.0, 204.0]

    def test_loses_the_forks_that_it_owes(self, case: Case) -> None:
        case.world.instance("worker-2", State.SPAWNING)
        case.gone()
        assert case.world.duties.posted == [("worker-2", Event.FORK_FAILED)]

    def test_is_forgotten_when_it_is_not_wanted(self, case: Case) -> None:
        old = case.world.template(7)
        case.gone(old)
        case.world.loop.advance(100.0)
        assert 7 not in case.world.fleet.generations
        assert not case.started

    def test_is_not_replaced_during_a_stop(self, case: Case) -> None:
        case.world.fleet.desired = replace(case.world.fleet.desired, mode=Mode.STOP)
        case.gone()
        case.world.loop.advance(100.0)
        assert not case.started

    def test_is_not_replaced_by_a_stop_that_comes_in_the_pause(self, case: Case) -> None:
        case.gone()
        case.world.fleet.desired = replace(case.world.fleet.desired, mode=Mode.STOP)
        case.world.loop.advance(100.0)
        assert not case.started

    def test_before_the_daemon_is_open_is_its_failure_not_ours(self, case: Case) -> None:
        case.world.fleet.is_open = False
        case.gone()
        case.world.loop.advance(100.0)
        assert not case.started
        assert 1 in case.world.fleet.generations


class TestAReplacement:
    def replace(self, case: Case, content: str) -> FakeGeneration:
        case.templates.imported(cast("Generation", case.template))
        newer = case.world.template(1, content=content)
        case.templates.imported(cast("Generation", newer))
        for work in case.world.duties.owned:
            work.close()
        return newer

    def test_with_the_same_code_is_accepted(self, case: Case) -> None:
        assert not self.replace(case, "digest").retired
        assert case.world.fleet.template_problem() is None

    def test_with_other_code_is_ended_and_reported(self, case: Case) -> None:
        assert self.replace(case, "other").retired
        assert "the code on disk is not what it loaded" in (case.world.fleet.template_problem() or "")
        assert case.world.duties.events[0][0] == "template_missing"
        assert case.world.fleet.desired.stand_in is None

    def test_is_stood_in_for_by_the_former_generation(self, case: Case) -> None:
        case.world.template(0)
        case.world.fleet.rollouts.former = 0
        self.replace(case, "other")
        assert case.world.fleet.desired.stand_in == 0
        assert "generation 0 replaces children that end" in (case.world.fleet.template_problem() or "")
        case.world.fleet.generations[0].retired = True
        case.templates.check(NOW)
        assert case.world.fleet.desired.stand_in is None

    def test_that_fits_again_ends_the_problem(self, case: Case) -> None:
        self.replace(case, "other")
        self.replace(case, "digest")
        assert case.world.fleet.template_problem() is None
        assert case.world.log.notes == ["generation 1 has a template again"]


class TestOneThatHangs:
    def test_in_a_fork_is_killed(self, case: Case) -> None:
        case.template.stall_s = STALLED_S
        case.templates.check(NOW)
        assert not case.template.killed
        case.template.stall_s = STALLED_S + 1.0
        case.templates.check(NOW)
        assert case.template.killed

    def test_in_its_import_writes_its_stacks_and_is_killed(self, case: Case) -> None:
        case.template.phase = Phase.IMPORTING
        case.templates._watch(cast("Generation", case.template))
        for _ in range(61):
            case.world.loop.advance(1.0)
            case.templates._lateness.ticked()
        assert case.world.kernel.signals == [(case.template.pidfd, "SIGUSR2")]
        assert case.template.killed
        assert case.template.failure is not None
        assert "--import-timeout" in case.template.failure.line

    def test_in_its_import_while_the_supervisor_was_stopped_has_its_time(self, case: Case) -> None:
        case.template.phase = Phase.IMPORTING
        case.templates._watch(cast("Generation", case.template))
        case.world.loop.advance(61.0)
        assert not case.world.kernel.signals
        assert case.template.due_at > NOW + 100.0

    def test_no_more_is_left_alone(self, case: Case) -> None:
        case.templates._watch(cast("Generation", case.template))
        case.world.loop.advance(100.0)
        assert not case.template.killed


def test_a_template_that_can_not_be_started_is_one_line_that_names_the_program(case: Case) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/srv/python")

    world = case.world
    cast("Any", world.kernel).packet_pair = refuse
    for _ in range(3):
        assert Templates.start(case.templates, 1) is None
    assert len(world.log.faults) == 1
    assert "its process can't be started: Permission denied: /srv/python" in world.log.faults[0]
    assert "Permission denied: /srv/python" in (world.fleet.problem(NOW) or "")
