"""purge_dead: dead letters are forgotten for good."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.engine.views import dead_letters, jobs
from upnext.errors import JobNotFoundError


def test_nothing_is_left(bench: Bench) -> None:
    bench.register(task("ship"))
    [job_id] = bench.dead("ship")
    assert dead_letters.purge(bench.broker, bench.keys, [job_id, "ship:n1-0"]) == dead_letters.Handled(
        [job_id], ["ship:n1-0"]
    )
    with pytest.raises(JobNotFoundError):
        jobs.job(bench.broker, bench.keys, job_id)
    assert bench.left(["dead", "r:"]) == []


def test_those_of_one_task(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    bench.dead("ship", 3)
    kept = bench.dead("pack", 2)
    dead_letters.purge(bench.broker, bench.keys, dead_letters.ids_of(bench.broker, bench.keys, "ship"))
    assert sorted(dead_letters.ids_of(bench.broker, bench.keys)) == sorted(kept)
