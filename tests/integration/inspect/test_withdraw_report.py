"""withdraw_report: a daemon that stops leaves nothing."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from tests.integration.inspect.reporting import listed, report
from upnext.engine.calls import daemons as calls


def test_only_the_life_that_reported_withdraws(bench: Bench) -> None:
    report(bench, "a", "worker-1", token="new")
    assert not bench.broker.run(calls.withdraw_report(bench.keys, "a", "old"))
    assert list(listed(bench)) == ["a"]
    assert bench.broker.run(calls.withdraw_report(bench.keys, "a", "new"))
    assert listed(bench) == {}
    assert bench.left(["daemons"]) == []
