"""list_crons: what runs by the clock, and running one now."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.spec import CronSpec
from upnext.engine import crons
from upnext.errors import UsageError


def test_last_and_next(bench: Bench) -> None:
    bench.register(
        task("b.nightly", cron=CronSpec("0 3 * * *", "Europe/Berlin")), task("a.tick", cron=CronSpec("* * * * * *"))
    )
    tick, nightly = crons.crons(bench.broker, bench.keys)
    assert (tick.name, tick.schedule, tick.timezone, tick.service) == ("a.tick", "* * * * * *", "UTC", "orders")
    assert (nightly.name, nightly.timezone) == ("b.nightly", "Europe/Berlin")
    assert tick.last_ms is not None
    assert tick.next_ms is not None
    assert nightly.next_ms is not None
    assert 0 < tick.next_ms - tick.last_ms <= 10_000
    assert tick.next_ms % 1000 == 0
    assert nightly.next_ms % 3_600_000 == 0


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
