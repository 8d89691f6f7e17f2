"""report: what a daemon says of itself takes the place of its former report."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from tests.integration.inspect.reporting import listed, report


def test_a_report_takes_the_place_of_the_one_before(bench: Bench) -> None:
    report(bench, "a", "worker-1", "worker-2")
    seen_ms = report(bench, "a", "worker-2", "worker-3", mode="paused")
    [one] = listed(bench).values()
    assert [slot["slot"] for slot in one.slots] == ["worker-2", "worker-3"]
    assert (one.host, one.name, one.version, one.state, one.seen_ms) == ("web-1", "shop", "1.2.3", "paused", seen_ms)
    assert 0 < bench.broker.command("TTL", bench.keys.daemon("a")) <= 60


def test_a_report_is_over_after_its_time(bench: Bench) -> None:
    report(bench, "a", "worker-1")
    bench.broker.command("DEL", bench.keys.daemon("a"))  # as EXPIRE does
    assert listed(bench) == {}
    bench.broker.command("ZADD", bench.keys.daemons, 1, "a")
    report(bench, "b", "worker-1")
    assert bench.broker.command("ZRANGE", bench.keys.daemons, 0, -1) == [b"b"]
