"""purge_delayed: jobs of one task that are not yet due."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.views import jobs, tasks
from upnext.errors import JobNotFoundError


def test_only_those_of_the_task(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    for _ in range(700):
        bench.submit("ship", delay_s=60.0)
    kept = bench.submit("pack", delay_s=60.0)
    purged = tasks.purge(bench.broker, bench.keys, "ship")
    assert (purged.queued, purged.delayed) == (0, 700)
    assert [job.job_id for job in jobs.jobs(bench.broker, bench.keys, JobStatus.DELAYED)] == [kept]
    assert bench.broker.command("HLEN", bench.keys.delayed_jobs) == 1


def test_between_two_attempts_too(bench: Bench) -> None:
    bench.register(task("ship", retries=1))
    job_id = bench.submit("ship")
    bench.retry_later(bench.take(), 60_000)
    assert tasks.purge(bench.broker, bench.keys, "ship").delayed == 1
    with pytest.raises(JobNotFoundError):
        jobs.job(bench.broker, bench.keys, job_id)


def test_keys_are_free_again_and_nothing_is_left(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship", delay_s=60.0, idempotency_key="k", queue_ttl_s=10.0)
    tasks.purge(bench.broker, bench.keys, "ship")
    assert bench.left(["idem", "delayed", "where"]) == []
