"""What requests of operators do to the desired state."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.support.actors import NOW, World, child_of
from upnextd.rules.modes import Request
from upnextd.rules.plan import Mode
from upnextd.shared.scoreboard import RunningJob
from upnextd.supervisor.operations import Progress
from upnextd.supervisor.requests import Requests


class Recorder:
    """Stands for the reloads and for systemd."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.stops = 0

    def abort(self, why: str) -> None:
        self.aborted.append(why)

    def stopping(self) -> None:
        self.stops += 1


def requests_of(world: World) -> tuple[Requests, Recorder]:
    recorder = Recorder()
    some: Any = cast("Any", recorder)
    return Requests(world.fleet, world.duties, some, some, world.log, world.loop.time, 30.0), recorder


def test_a_pause_is_wanted_and_published() -> None:
    world = World()
    requests, _ = requests_of(world)
    assert requests.ask(Request.PAUSE) is None
    assert world.fleet.desired.mode is Mode.PAUSE
    assert world.duties.events == [("mode", {"mode": "paused"})]


def test_a_request_that_is_met_already_edits_nothing() -> None:
    world = World()
    requests, _ = requests_of(world)
    requests.ask(Request.RESUME)
    assert not world.duties.edits


def test_a_refused_request_edits_nothing() -> None:
    world = World()
    requests, _ = requests_of(world)
    requests.ask(Request.STOP_NOW)
    edits = len(world.duties.edits)
    assert requests.ask(Request.RESUME) is not None
    assert len(world.duties.edits) == edits


def test_a_stop_has_a_deadline_and_ends_the_reload() -> None:
    world = World()
    requests, recorder = requests_of(world)
    requests.ask(Request.STOP)
    assert world.fleet.desired.stop_by == NOW + 30.0
    assert recorder.aborted == ["the daemon stops"]
    requests.ask(Request.STOP_NOW)
    assert world.fleet.desired.mode is Mode.STOP_NOW
    assert recorder.stops == 1, "systemd is notified once"


@pytest.mark.parametrize(
    ("jobs", "request_", "line"),
    [
        (0, Request.STOP, "no job runs"),
        (0, Request.STOP_NOW, "no job runs"),
        (1, Request.STOP, "1 running job is left 30 s to end"),
        (2, Request.STOP_NOW, "2 running jobs are killed"),
    ],
)
def test_a_stop_logs_what_becomes_of_the_jobs_that_run(jobs: int, request_: Request, line: str) -> None:
    world = World()
    job = RunningJob("ship:1", "ship", "default", "1-0", 2.0)
    child_of(world.fleet.instances[0]).page.jobs = [job] * jobs
    requests_of(world)[0].ask(request_)
    assert world.log.notes == [f"stopping ({request_.value}): {line}"]


def test_a_new_mode_ends_the_operations_that_it_contradicts() -> None:
    world = World()
    requests, _ = requests_of(world)
    pausing = world.fleet.operations.begin("pause", lambda: Progress("1 of 2 workers paused"))
    done = world.fleet.operations.begin("drain False", lambda: Progress("drained", done=True))
    requests.ask(Request.STOP)
    assert (pausing.progress.done, pausing.progress.ok) == (True, False)
    assert (done.progress.text, done.progress.ok) == ("drained", True), "it was done before the stop"


@pytest.mark.parametrize(("workers", "logged"), [(3, "notes"), (0, "cautions")])
def test_scale(workers: int, logged: str) -> None:
    world = World()
    requests, _ = requests_of(world)
    before = world.fleet.operations.begin("scale 2", lambda: Progress("1 of 2 workers ready"))
    requests.scale(workers, "scale")
    assert world.duties.edits == [{"workers": workers}]
    assert before.progress.text == "superseded by scale"
    assert len(getattr(world.log, logged)) == 1


def test_the_same_number_of_workers_is_no_change() -> None:
    world = World(workers=2)
    requests, _ = requests_of(world)
    requests.scale(2, "scale")
    assert not world.duties.edits


def test_a_restart_marks_what_there_is() -> None:
    world = World(workers=2)
    requests, _ = requests_of(world)
    first, second = world.fleet.instances
    requests.restart("worker-1", {"worker-1": first.id})
    assert world.fleet.is_outdated(first)
    assert not world.fleet.is_outdated(second)
    newer = world.instance("worker-1")
    assert not world.fleet.is_outdated(newer)
    assert not world.duties.posted, "only the desired state is edited"
