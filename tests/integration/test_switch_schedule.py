"""switch_schedule: an operator's pause of a schedule, which holds its ticks alone."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench
from tests.integration.made_schedules import ready, spec, tick
from upnext.engine.calls import schedules as calls
from upnext.engine.calls.lease import FIRED, PAUSED
from upnext.engine.views import crons


def test_paused_and_resumed(work: Workbench) -> None:
    made = spec()
    tick_ms = ready(work, made)
    with work.bell() as words:
        assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=True)) == calls.CHANGED
        assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=True)) == calls.UNCHANGED
    assert words == ["p"]
    assert tick(work, made, tick_ms) == (PAUSED, 0)
    assert crons.schedule(work.broker, work.keys, "nightly").waits == "it is paused"
    work.broker.run(calls.set_schedule(work.keys, made, b"{}"))
    assert crons.schedule(work.broker, work.keys, "nightly").paused, "an operator's pause stays"
    assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=False)) == calls.CHANGED
    assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=False)) == calls.UNCHANGED
    assert tick(work, made, tick_ms)[0] == FIRED


def test_an_unknown_one(work: Workbench) -> None:
    before = work.everything()
    for paused in (True, False):
        assert work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=paused)) == calls.UNKNOWN
    assert work.everything() == before
