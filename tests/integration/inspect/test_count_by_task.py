"""count_by_task: sums over the whole set, part by part."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.engine.calls import inspect
from upnext.engine.views import tasks


def test_parts_add_up(bench: Bench) -> None:
    bench.register(task("a:b"), task("ship"))
    for number in range(300):
        bench.submit("ship" if number % 3 else "a:b", delay_s=60.0)
    totals: dict[str, int] = {}
    cursor, runs = "0", 0
    while runs == 0 or cursor != "0":
        cursor, counts = bench.broker.run(inspect.count_by_task(bench.keys, dead=False, cursor=cursor, look=20))
        runs += 1
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    assert totals == {"ship": 200, "a:b": 100}
    assert runs > 1


def test_dead_letters(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.dead("ship", 4)
    [ship] = tasks.tasks(bench.broker, bench.keys, 0)
    assert (ship.dead, ship.delayed) == (4, 0)
