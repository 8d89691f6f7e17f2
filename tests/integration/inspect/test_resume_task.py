"""resume_task: a paused task is fetched again."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.engine.views import tasks
from upnext.errors import UsageError


def test_it_is_fetched_again_and_the_bell_rings(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    tasks.pause(bench.broker, bench.keys, "ship")
    assert bench.fetch() == []
    with bench.bell() as words:
        assert tasks.resume(bench.broker, bench.keys, "ship")
    assert words == ["p"]
    assert bench.take().job_id == job_id


def test_one_that_was_not_paused(bench: Bench) -> None:
    bench.register(task("ship"))
    assert not tasks.resume(bench.broker, bench.keys, "ship")
    with pytest.raises(UsageError):
        tasks.resume(bench.broker, bench.keys, "nothing")


def test_a_pause_can_be_lifted_after_its_task_is_gone(bench: Bench) -> None:
    bench.register(task("ship"))
    tasks.pause(bench.broker, bench.keys, "ship")
    bench.broker.command("HDEL", bench.keys.tasks, "ship")
    assert tasks.resume(bench.broker, bench.keys, "ship")
