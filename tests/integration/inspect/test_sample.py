"""sample: counters and depths of all tasks at one moment, written once."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core import series
from upnext.core.series import FINE, Sample
from upnext.engine.calls import series as calls
from upnext.engine.redis.replies import EpochError
from upnext.engine.views import series as views

MINUTE = 30_000_000


def sample(bench: Bench, minute: int, epoch: str | None = None) -> None:
    cursor = "0"
    while True:
        cursor = bench.broker.run(calls.sample(bench.keys, epoch or bench.epoch, minute, FINE, cursor))
        if cursor == "0":
            return


def found(bench: Bench, minute: int, name: str = "ship") -> Sample | None:
    _, moments = views.read(bench.broker, bench.keys, FINE, [minute], name)
    return moments[minute].samples.get(name)


def test_counters_and_depths(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    bench.submit("ship")
    bench.finish(bench.take())
    bench.dead("ship", 2)
    for _ in range(5):
        bench.submit("ship")
    bench.fetch(3)
    sample(bench, MINUTE)
    one = found(bench, MINUTE)
    assert one is not None
    assert (one.done, one.failed, one.queued, one.running, one.ended) == (1, 2, 2, 3, 3)
    assert 0 <= one.oldest_s < 60
    assert found(bench, MINUTE, "pack") == Sample(0, 0, 0, 0, 0, 0, 0, 0.0)


def test_a_repeat_and_another_leader_change_nothing(bench: Bench) -> None:
    bench.register(task("ship"))
    sample(bench, MINUTE)
    before = found(bench, MINUTE)
    bench.submit("ship")
    bench.finish(bench.take())
    sample(bench, MINUTE)
    assert found(bench, MINUTE) == before


def test_what_stands_still_is_written_with_the_next_change(bench: Bench) -> None:
    bench.register(task("ship"))
    for minute in range(MINUTE, MINUTE + 4):
        sample(bench, minute)
    assert found(bench, MINUTE + 2) is None
    bench.submit("ship")
    bench.finish(bench.take())
    sample(bench, MINUTE + 4)
    assert found(bench, MINUTE + 3) is not None
    points = views.of_task(bench.broker, bench.keys, "ship", (MINUTE + 5) * 60_000, FINE)
    assert [one.ended for one in points[-5:]] == [0, 0, 0, 1, None]


def test_all_pages_of_many_tasks(bench: Bench) -> None:
    bench.register(*(task(f"t{number}") for number in range(400)))
    sample(bench, MINUTE)
    _, moments = views.read(bench.broker, bench.keys, FINE, [MINUTE])
    assert len(moments[MINUTE].samples) == 400
    assert moments[MINUTE].sampled


def test_it_is_kept_for_a_while_and_fenced(bench: Bench) -> None:
    bench.register(task("ship"))
    sample(bench, MINUTE)
    assert 0 < bench.broker.command("TTL", bench.keys.series(FINE, MINUTE)) <= series.KEPT_S[FINE]
    with pytest.raises(EpochError):
        sample(bench, MINUTE + 1, "another")
    assert bench.broker.command("EXISTS", bench.keys.series(FINE, MINUTE + 1)) == 0
