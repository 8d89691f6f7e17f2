"""list_crons: what runs by the clock, and running one now."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.entry import Meta
from upnext.core.spec import CronSpec
from upnext.engine.calls import lease
from upnext.engine.views import crons
from upnext.errors import UsageError


def test_last_and_next(bench: Bench) -> None:
    bench.register(
        task("b.nightly", cron=CronSpec("0 3 * * *", "Europe/Berlin")), task("a.tick", cron=CronSpec("* * * * * *"))
    )
    tick, nightly = crons.crons(bench.broker, bench.keys)
    assert (tick.name, tick.schedule, tick.timezone, tick.service) == ("a.tick", "* * * * * *", "UTC", "orders")
    assert (nightly.name, nightly.timezone) == ("b.nightly", "Europe/Berlin")
    assert tick.next_ms is not None
    assert nightly.next_ms is not None
    server_s, _ = bench.broker.command("TIME")
    assert -10_000 <= tick.next_ms - int(server_s) * 1000 <= 10_000
    assert tick.next_ms % 1000 == 0
    assert nightly.next_ms % 3_600_000 == 0


def test_last_is_the_newest_tick_that_fired(bench: Bench) -> None:
    bench.register(task("tidy", cron=CronSpec("* * * * *")))
    assert last(bench) is None, "it has only been seen"
    server_s, _ = bench.broker.command("TIME")
    keys, tick_ms = bench.keys, int(server_s) // 60 * 60_000
    bench.broker.command("HSET", keys.cursors, "tidy", 0)
    bench.broker.run(
        lease.beat(keys, bench.epoch, daemon="d", token="t", lease_ms=1, leadership_ms=60_000, consumers=[])
    )
    for back, fire, expected in ((3, False, None), (2, True, 2), (1, False, 2)):
        at_ms = tick_ms - back * 60_000
        call = lease.tick(keys, bench.epoch, term=1, cron="tidy", tick_ms=at_ms, payload=b"{}", meta=Meta(), fire=fire)
        assert bench.broker.run(call)[0] == lease.FIRED
        assert last(bench) == (expected and tick_ms - expected * 60_000)


def last(bench: Bench) -> int | None:
    [only] = crons.crons(bench.broker, bench.keys)
    return only.last_ms


def test_a_schedule_that_this_version_can_not_read(bench: Bench) -> None:
    bench.broker.command("HSET", bench.keys.crons, "odd", '{"task":"odd","schedule":"@whenever","timezone":"UTC"}')
    [odd] = crons.crons(bench.broker, bench.keys)
    assert (odd.name, odd.next_ms, odd.last_ms) == ("odd", None, None)


def test_run_now(bench: Bench) -> None:
    bench.register(task("nightly", cron=CronSpec("0 3 * * *")))
    job_id = bench.broker.submit(crons.submission(bench.broker, bench.keys, "nightly"))
    assert bench.take().job_id == job_id


def test_run_an_unknown_one(bench: Bench) -> None:
    bench.register(task("nightly", cron=CronSpec("0 3 * * *")))
    with pytest.raises(UsageError, match=r"no cron 'daily' is known here \(known: nightly\)"):
        crons.submission(bench.broker, bench.keys, "daily")
