"""set_schedule: makes a schedule, or changes it and leaves its pause and, where its times are the same, its ticks."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from tests.integration.made_schedules import ready, spec
from upnext.core.schedules import MOST_SCHEDULES, ScheduleSpec, encode
from upnext.core.spec import CronSpec, MissedRunPolicy
from upnext.engine.calls import schedules as calls
from upnext.engine.views import crons


def test_times_that_stay_go_on_and_others_begin_now(work: Workbench) -> None:
    ready(work)
    assert work.broker.run(calls.set_schedule(work.keys, spec(missed=MissedRunPolicy.SKIP), b"{}")) == calls.KNOWN
    assert work.hash(work.keys.schedules_state)["nightly"] == "0"
    moved = ScheduleSpec("nightly", "ship", CronSpec("", every_ms=5000))
    assert work.broker.run(calls.set_schedule(work.keys, moved, b"{}")) == calls.KNOWN
    cursor_ms = int(work.hash(work.keys.schedules_state)["nightly"])
    assert 0 <= work.now_ms() - cursor_ms < 5000
    assert crons.schedule(work.broker, work.keys, "nightly").next_ms == cursor_ms + 5000


def test_no_registration_changes_a_schedule(work: Workbench) -> None:
    """Nor does the removal of its task, nor a cron of the same name."""
    made = spec()
    ready(work, made)
    kept = (work.keys.schedules, work.keys.schedules_arguments, work.keys.schedules_state)
    before = [work.hash(key) for key in kept]
    work.register(task("ship"), task("nightly", cron=CronSpec("0 3 * * *")))
    work.broker.command("HDEL", work.keys.crons, "nightly")
    assert [work.hash(key) for key in kept] == before


def test_a_name_that_a_declared_cron_has_and_too_many(work: Workbench) -> None:
    work.register(task("ship"), task("tidy", cron=CronSpec("0 3 * * *")))
    assert work.broker.run(calls.set_schedule(work.keys, spec("tidy"), b"{}")) == calls.TAKEN
    row = encode(spec())
    full = [part for number in range(MOST_SCHEDULES) for part in (f"s{number}", row)]
    work.broker.command("HSET", work.keys.schedules, *full)
    assert work.broker.run(calls.set_schedule(work.keys, spec("one-more"), b"{}")) == calls.FULL
    assert work.broker.run(calls.set_schedule(work.keys, spec("s7"), b"{}")) == calls.KNOWN


def test_a_schedule_without_a_cursor_begins_now(work: Workbench) -> None:
    ready(work)
    work.broker.command("HDEL", work.keys.schedules_state, "nightly")
    with work.bell() as words:
        work.broker.run(calls.set_schedule(work.keys, spec(), b"{}"))
    assert words == ["p"], "the scheduler that leads looks again"
    assert work.now_ms() - int(work.hash(work.keys.schedules_state)["nightly"]) < 60_000
