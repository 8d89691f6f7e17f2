"""queued_jobs: what waits, and only that."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.views import jobs


def listed(bench: Bench, **options: object) -> list[str]:
    return [job.job_id for job in jobs.jobs(bench.broker, bench.keys, JobStatus.QUEUED, **options)]  # type: ignore[arg-type]


def test_oldest_first_of_every_lane_without_the_fetched_ones(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    first, second, third = (bench.submit("ship") for _ in range(3))
    high = bench.submit("ship", priority="high")
    other = bench.submit("pack")
    assert listed(bench) == [other, first, second, third, high]
    assert bench.take(lanes="n").job_id == other
    assert bench.take(lanes="n").job_id == first
    assert listed(bench) == [second, third, high]
    assert listed(bench, task="pack") == []
    assert listed(bench, limit=2) == [second, third]


def test_a_job_that_came_back_keeps_its_id(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.crash(bench.take())
    assert listed(bench) == [job_id]


def test_streams_that_no_group_reads(bench: Bench) -> None:
    job_id = bench.submit("ship")
    assert listed(bench, task="ship") == [job_id]
    assert listed(bench, task="nothing") == []
