"""remove: a name leaves the registry, unless it was announced meanwhile; a task's row waits for its jobs."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import Workbench, task
from tests.integration.owning import announce, register, registry, rows, statement
from upnext.core.spec import CronSpec, RateLimit
from upnext.engine.calls import ownership

SHIP = task("ship", rate_limit=RateLimit(5, 1.0))
TIDY = task("tidy", cron=CronSpec("0 0 * * *", "Europe/Rome"))
MAIL = task("paid.mail", event="paid")


def remove(
    work: Workbench, name: str, *, keep_cursor: bool = False, whole: bool = True, overrides: bool = False
) -> int:
    raw = registry(work).raw[name]
    call = ownership.remove(work.keys, work.epoch, name, raw, keep_cursor=keep_cursor, whole=whole, overrides=overrides)
    return work.broker.run(call)


def test_a_task_without_jobs_leaves_nothing(work: Workbench) -> None:
    register(work, SHIP)
    work.broker.command("HSET", work.keys.stats, "ship:done", 5, "other:done", 6)
    assert remove(work, "ship") == ownership.GONE
    for key in (work.keys.tasks, work.keys.limits, work.keys.seen):
        assert work.hash(key) == {}
    assert work.stats() == {"other:done": 6}
    assert work.broker.command("EXISTS", *work.keys.streams("ship")) == 0


def test_one_with_jobs_stays_and_loses_none(work: Workbench) -> None:
    register(work, MAIL)
    job_id = work.submit("paid.mail")
    assert remove(work, "paid.mail") == ownership.INACTIVE
    assert work.hash(work.keys.event("paid")) == {}, "it gets no more events"
    assert list(work.hash(work.keys.tasks)) == ["paid.mail"]
    work.register(MAIL)
    assert work.take().job_id == job_id


def test_jobs_that_are_held_count(work: Workbench) -> None:
    work.register(SHIP)
    work.submit("ship")
    work.take()
    assert remove(work, "ship") == ownership.INACTIVE
    assert work.pending("ship") == 1


def test_a_lapsed_cron_keeps_its_cursor_and_a_withdrawn_one_does_not(work: Workbench) -> None:
    for keep in (True, False):
        register(work, TIDY)
        work.broker.command("HSET", work.keys.fired, "tidy", 1)
        with work.bell() as words:
            assert remove(work, "tidy", keep_cursor=keep) == ownership.GONE
        assert words == ["p"]
        assert work.hash(work.keys.crons) == {}
        assert [list(work.hash(key)) for key in (work.keys.cursors, work.keys.fired)] == [["tidy"] if keep else []] * 2
        if keep:
            row = rows(work, work.keys.lapsed)["tidy"]
            assert (row["schedule"], row["timezone"]) == ("0 0 * * *", "Europe/Rome")
            assert abs(row["at_ms"] - work.now_ms()) < 60_000
            work.broker.command("DEL", work.keys.lapsed, work.keys.cursors)


def test_the_row_stays_unless_asked_for(work: Workbench) -> None:
    register(work, TIDY)
    assert remove(work, "tidy", whole=False) == ownership.INACTIVE
    assert (list(work.hash(work.keys.tasks)), work.hash(work.keys.crons)) == (["tidy"], {})


@pytest.mark.parametrize(
    "change", ["announced", "registered", "sent to by an older version", "seen by an older version"]
)
def test_what_changed_meanwhile_is_left_alone(work: Workbench, change: str) -> None:
    register(work, TIDY, MAIL)
    work.broker.command("HSET", work.keys.seen, "tidy", 5, "paid.mail", 5)
    work.broker.command("HSET", work.keys.event("paid"), "paid.mail", 5)
    raw = registry(work).raw
    match change:
        case "announced":
            announce(work, statement(TIDY, MAIL))
        case "registered":
            register(work, TIDY, MAIL, generation_ms=9)
        case "sent to by an older version":
            work.broker.command("HSET", work.keys.event("paid"), "paid.mail", 6)
            work.broker.command("HSET", work.keys.crons, "tidy", '{"last_seen_ms": 6}')
        case _:
            work.broker.command("HSET", work.keys.tasks, "paid.mail", "{}", "tidy", "{}")
    before = work.everything()
    for name in ("tidy", "paid.mail"):
        call = ownership.remove(work.keys, work.epoch, name, raw[name], keep_cursor=False, whole=True)
        assert work.broker.run(call) == ownership.CHANGED
    assert work.everything() == before


def test_what_operators_set_stays_unless_it_is_forgotten(work: Workbench) -> None:
    for forget in (False, True):
        register(work, SHIP)
        work.broker.run(ownership.set_limits(work.keys, "ship", {"concurrency": 1}))
        work.broker.command("SADD", work.keys.paused, "ship")
        assert remove(work, "ship", overrides=forget) == ownership.GONE
        assert work.hash(work.keys.limits) == {}
        assert (work.hash(work.keys.limits_set) == {}) is forget
        assert (work.broker.command("SCARD", work.keys.paused) == 0) is forget


def test_another_epoch(work: Workbench) -> None:
    register(work, SHIP)
    raw = registry(work).raw["ship"]
    work.refuses_another_epoch(
        lambda epoch: ownership.remove(work.keys, epoch, "ship", raw, keep_cursor=False, whole=True)
    )
