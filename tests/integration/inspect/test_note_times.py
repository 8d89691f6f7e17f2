"""note_times: how long attempts waited and ran, added up in a minute and a quarter of an hour."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from upnext.core.series import COARSE, FINE, KEPT_S, Times, at, quantile_s
from upnext.engine.calls import series as calls
from upnext.engine.views import series as views

NOW_MS = 1_800_000_123_000


def test_several_workers_add_up(bench: Bench) -> None:
    for run_s in (1.0, 3.0):
        times = Times()
        times.note(0.01, run_s, weight=10)
        assert bench.broker.run(calls.note_times(bench.keys, NOW_MS, {"ship": times, "pack": Times({1: 1}, {})})) == 2
    for step in (FINE, COARSE):
        _, found = views.read(bench.broker, bench.keys, step, [at(NOW_MS, step)])
        noted = found[at(NOW_MS, step)].times
        assert sum(noted["ship"].runs.values()) == 20
        assert noted["pack"].waits == {1: 2}
        assert 0 < bench.broker.command("TTL", bench.keys.times(step, at(NOW_MS, step))) <= KEPT_S[step]
    usual = views.usual(bench.broker, bench.keys, "ship", NOW_MS)
    assert 2.5 < (quantile_s(usual.runs, 0.95) or 0) < 4.5


def test_a_row_that_cannot_be_read_is_begun_anew(bench: Bench) -> None:
    bench.broker.command("HSET", bench.keys.times(FINE, at(NOW_MS, FINE)), "ship", "garbage")
    bench.broker.run(calls.note_times(bench.keys, NOW_MS, {"ship": Times({1: 1}, {2: 1})}))
    _, found = views.read(bench.broker, bench.keys, FINE, [at(NOW_MS, FINE)], "ship")
    assert found[at(NOW_MS, FINE)].times["ship"] == Times({1: 1}, {2: 1})
