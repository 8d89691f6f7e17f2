"""list_tasks: depths, counters and switches of every registered task."""

from __future__ import annotations

import time

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.spec import CronSpec, RateLimit
from upnext.engine.views import tasks
from upnext.errors import UsageError


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_depths_and_counters(bench: Bench) -> None:
    bench.register(task("ship"), task("order.placed", event="placed"), task("nightly", cron=CronSpec("0 3 * * *")))
    for _ in range(5):
        bench.submit("ship")
    bench.submit("ship", priority="high")
    bench.submit("ship", delay_s=60.0)
    first, second, _ = bench.fetch(3, lanes="n")
    bench.finish(first)
    bench.fail(second)
    nightly, placed, ship = tasks.tasks(bench.broker, bench.keys, now_ms())
    assert [nightly.name, placed.name, ship.name] == ["nightly", "order.placed", "ship"]
    assert [nightly.kind, placed.kind, ship.kind] == ["cron", "event", "task"]
    assert (ship.queued, ship.running, ship.delayed, ship.dead, ship.done, ship.failed) == (3, 1, 1, 1, 1, 1)
    assert ship.rate_per_s == pytest.approx(2 / 65, rel=0.1)
    assert (ship.service, ship.paused, ship.limits) == ("orders", False, None)
    assert ship.signature.startswith("sample(order_id: str")
    assert (placed.event, placed.queued, placed.rate_per_s) == ("placed", 0, 0)


def test_limits_and_pauses(bench: Bench) -> None:
    bench.register(task("ship", rate_limit=RateLimit(10, 60.0), max_concurrency=2))
    tasks.pause(bench.broker, bench.keys, "ship")
    [ship] = tasks.tasks(bench.broker, bench.keys, now_ms())
    assert (ship.paused, ship.limits) == (True, {"rate": 10, "period_s": 60.0, "concurrency": 2})


def test_a_rate_is_forgotten_after_its_buckets(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship")
    bench.finish(bench.take())
    [ship] = tasks.tasks(bench.broker, bench.keys, now_ms() + 80_000)
    assert (ship.done, ship.rate_per_s) == (1, 0)


def test_one_by_name(bench: Bench) -> None:
    bench.register(task("ship"))
    assert tasks.one(bench.broker, bench.keys, "ship").name == "ship"
    with pytest.raises(UsageError, match="no task 'shop' is registered here; did you mean ship"):
        tasks.one(bench.broker, bench.keys, "shop")
    with pytest.raises(UsageError, match="upnext list"):
        tasks.one(bench.broker, bench.keys, "zzz")


def test_nothing_registered(bench: Bench) -> None:
    assert tasks.tasks(bench.broker, bench.keys, now_ms()) == []
