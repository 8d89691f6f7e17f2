"""remove_schedule: a schedule goes with all that is kept of it, its jobs stay."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench
from tests.integration.made_schedules import MINUTE_MS, ready, spec, tick
from upnext.engine.calls import schedules as calls
from upnext.engine.calls.lease import GONE


def test_nothing_of_it_is_left_but_its_jobs(work: Workbench) -> None:
    made = spec(overlap=False)
    tick_ms = ready(work, made)
    tick(work, made, tick_ms - MINUTE_MS)
    tick(work, made, tick_ms)
    work.broker.run(calls.switch_schedule(work.keys, "nightly", paused=True))
    assert len(work.hash(work.keys.schedules_state)) == 4
    assert work.broker.run(calls.remove_schedule(work.keys, "nightly"))
    for key in (work.keys.schedules, work.keys.schedules_arguments, work.keys.schedules_state):
        assert work.hash(key) == {}
    assert work.lengths("ship") == "n1"
    assert tick(work, made, tick_ms) == (GONE, 0)
    assert not work.broker.run(calls.remove_schedule(work.keys, "nightly"))
    work.finish(work.take())
    assert work.leaks() == []
