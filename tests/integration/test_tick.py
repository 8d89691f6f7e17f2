"""tick: one due instant of a cron fires once, for the leader's term, by the server's clock."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import Workbench, task
from tests.integration.made_schedules import lead
from upnext.core.entry import Meta
from upnext.core.spec import STEPPED_BACK_MS, CronSpec
from upnext.engine.calls import admin, inspect, lease
from upnext.engine.calls.lease import EARLY, FIRED, GONE, HELD, PASSED, PAUSED
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import Call, run_calls_blocking

CRON = CronSpec("* * * * *")


def ready(work: Workbench, max_concurrency: int | None = None) -> int:
    """-> a tick that is due."""
    work.register(task("tidy", cron=CRON, max_concurrency=max_concurrency))
    lead(work)
    work.broker.command("HSET", work.keys.cursors, "tidy", 0)
    return work.now_ms() // 60_000 * 60_000


def call(
    work: Workbench, tick_ms: int, *, term: int = 1, fire: bool = True, epoch: str | None = None, overlap: bool = True
) -> Call[tuple[int, int | str]]:
    meta = Meta(tick_ms=tick_ms)
    return lease.tick(
        work.keys,
        epoch or work.epoch,
        term=term,
        cron="tidy",
        tick_ms=tick_ms,
        payload=b"{}",
        meta=meta,
        fire=fire,
        overlap=overlap,
    )


def test_a_due_tick_fires_and_says_which_it_was(work: Workbench) -> None:
    tick_ms = ready(work)
    kind, entry_id = work.broker.run(call(work, tick_ms))
    assert kind == FIRED
    [(found, _)] = work.lane("tidy", "n")
    assert found.decode() == entry_id
    assert work.metas("tidy", "n") == [Meta(tick_ms=tick_ms)]
    assert work.hash(work.keys.cursors)["tidy"] == str(tick_ms)
    assert work.hash(work.keys.fired)["tidy"] == str(tick_ms)
    work.finish(work.take())
    assert work.leaks() == []


def test_once_ever(work: Workbench) -> None:
    tick_ms = ready(work)
    work.broker.run(call(work, tick_ms))
    before = work.everything()
    assert work.broker.run(call(work, tick_ms)) == (PASSED, tick_ms)
    assert work.broker.run(call(work, tick_ms - 60_000)) == (PASSED, tick_ms)
    assert work.everything() == before


def test_not_before_its_time(work: Workbench) -> None:
    ready(work)
    tick_ms = work.now_ms() + 10_000
    before = work.everything()
    kind, wait_ms = work.broker.run(call(work, tick_ms))
    assert kind == EARLY
    assert isinstance(wait_ms, int)
    assert 5_000 < wait_ms <= 10_000
    assert work.everything() == before


def test_a_tick_that_is_skipped_only_moves_the_cursor(work: Workbench) -> None:
    tick_ms = ready(work)
    assert work.broker.run(call(work, tick_ms, fire=False)) == (FIRED, "")
    assert work.lengths("tidy") == ""
    assert work.hash(work.keys.fired) == {}
    assert work.broker.run(call(work, tick_ms)) == (PASSED, tick_ms)


def test_a_cron_that_is_gone(work: Workbench) -> None:
    tick_ms = ready(work)
    work.broker.command("HDEL", work.keys.crons, "tidy")
    before = work.everything()
    assert work.broker.run(call(work, tick_ms)) == (GONE, 0)
    assert work.everything() == before


def test_an_old_term_is_refused(work: Workbench) -> None:
    tick_ms = ready(work)
    lead(work, "d2")
    before = work.everything()
    for term in (1, 3):
        with pytest.raises(ReplyError) as raised:
            work.broker.run(call(work, tick_ms, term=term))
        assert raised.value.code == "TERM"
    assert work.everything() == before
    assert work.broker.run(call(work, tick_ms, term=2))[0] == FIRED


def test_the_bell_rings_for_a_limited_cron(work: Workbench) -> None:
    tick_ms = ready(work, max_concurrency=1)
    with work.bell() as words:
        work.broker.run(call(work, tick_ms))
    assert words == ["ttidy"]


def test_another_epoch(work: Workbench) -> None:
    tick_ms = ready(work)
    work.refuses_another_epoch(lambda epoch: call(work, tick_ms, epoch=epoch))


def test_a_cursor_from_before_the_clock_was_set_back_is_moved_by_a_skipped_tick_alone(work: Workbench) -> None:
    tick_ms = ready(work)
    for ahead_ms, moves in ((STEPPED_BACK_MS - 60_000, False), (STEPPED_BACK_MS + 60_000, True)):
        cursor = work.now_ms() + ahead_ms
        work.broker.command("HSET", work.keys.cursors, "tidy", cursor)
        assert work.broker.run(call(work, tick_ms)) == (PASSED, cursor), "what fires never comes again"
        kind, _ = work.broker.run(call(work, tick_ms, fire=False))
        assert kind == (FIRED if moves else PASSED)
        assert work.hash(work.keys.cursors)["tidy"] == str(tick_ms if moves else cursor)
    assert work.lane("tidy", "n") == []


def test_a_tick_that_may_not_overlap_is_skipped_and_counted_until_the_job_before_has_ended(work: Workbench) -> None:
    tick_ms = ready(work)
    kind, entry_id = work.broker.run(call(work, tick_ms - 180_000, overlap=False))
    assert kind == FIRED
    for earlier in (120_000, 60_000):
        assert work.broker.run(call(work, tick_ms - earlier, overlap=False)) == (HELD, f"tidy:n{entry_id}")
    assert work.hash(work.keys.cursors)["tidy"] == str(tick_ms - 60_000)
    assert work.hash(work.keys.stats)["tidy:skipped"] == "2"
    assert len(work.lane("tidy", "n")) == 1
    [listed] = run_calls_blocking(inspect.list_crons(work.keys), work.broker.run)[1]
    assert listed.skipped == 2

    assert work.broker.run(admin.purge_queued(work.keys, "tidy", "n")) == 1
    assert work.broker.run(call(work, tick_ms, overlap=False))[0] == FIRED


def test_a_paused_cron_does_not_fire_and_keeps_its_cursor(work: Workbench) -> None:
    tick_ms = ready(work)
    work.broker.command("SADD", work.keys.paused, "tidy")
    before = work.everything()
    assert work.broker.run(call(work, tick_ms)) == (PAUSED, 0)
    assert work.everything() == before
    assert work.broker.run(call(work, tick_ms, fire=False))[0] == FIRED, "a tick that the policy skips moves the cursor"
