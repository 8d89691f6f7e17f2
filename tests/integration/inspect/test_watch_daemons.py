"""watch_daemons: a look makes daemons report."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from upnext.core import reports
from upnext.engine.calls import daemons as calls


def test_the_first_look_rings(bench: Bench) -> None:
    with bench.bell() as words:
        assert bench.broker.run(calls.watch_daemons(bench.keys))
        assert not bench.broker.run(calls.watch_daemons(bench.keys))
    assert words == ["w"]
    assert 0 < bench.broker.command("TTL", bench.keys.watched) <= reports.WATCHED_S
