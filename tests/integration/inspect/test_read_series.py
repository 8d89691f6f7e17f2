"""read_series: moments of one task or of all, as many as a reply may hold."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench
from upnext.core.series import FINE, Sample
from upnext.engine.calls import series as calls
from upnext.engine.views import series as views


def test_large_moments_come_in_parts(bench: Bench) -> None:
    for minute in range(10, 14):
        key = bench.keys.series(FINE, minute)
        for first in range(0, 20_000, 2_000):
            rows = [
                part for number in range(first, first + 2_000) for part in (f"task-{number:040}", "1 2 3 4 5 6 7 8")
            ]
            bench.broker.command("HSET", key, *rows)
    wanted = list(range(9, 15))
    _, page = bench.broker.run(calls.read_series(bench.keys, FINE, wanted, None))
    assert 1 <= len(page) < len(wanted)
    _, found = views.read(bench.broker, bench.keys, FINE, wanted)
    assert [len(found[minute].samples) for minute in wanted] == [0, 20_000, 20_000, 20_000, 20_000, 0]


def test_of_one_task_with_its_last_row(bench: Bench) -> None:
    bench.broker.command("HSET", bench.keys.series(FINE, 10), "=", "1", "a", "1 2 3 4 5 6 7 8000", "b", "garbage")
    bench.broker.command("HSET", bench.keys.series_last(FINE), "a", "9 2 3 4 5 6 7 8000")
    last, found = views.read(bench.broker, bench.keys, FINE, [10, 11], "a")
    assert found[10].samples == {"a": Sample(1, 2, 3, 4, 5, 6, 7, 8.0)}
    assert (found[10].sampled, found[11].sampled) == (True, False)
    assert last["a"].done == 9
    assert views.read(bench.broker, bench.keys, FINE, [10], "b")[1][10].samples == {}
