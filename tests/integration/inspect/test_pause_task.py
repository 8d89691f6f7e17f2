"""pause_task: nothing of the task is fetched, at once and everywhere."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.engine.views import tasks
from upnext.errors import UsageError


def test_nothing_is_fetched_and_the_bell_rings(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    bench.submit("ship")
    packed = bench.submit("pack")
    with bench.bell() as words:
        assert tasks.pause(bench.broker, bench.keys, "ship")
    assert words == ["p"]
    assert [one.job_id for one in bench.fetch()] == [packed]


def test_twice(bench: Bench) -> None:
    bench.register(task("ship"))
    assert tasks.pause(bench.broker, bench.keys, "ship")
    assert not tasks.pause(bench.broker, bench.keys, "ship")


def test_an_unknown_task(bench: Bench) -> None:
    bench.register(task("ship"))
    with pytest.raises(UsageError, match="did you mean ship"):
        tasks.pause(bench.broker, bench.keys, "shipp")
    assert bench.left(["paused"]) == []
