"""find_job: one job, wherever it is."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import FailureReason, JobStatus
from upnext.engine.views import jobs
from upnext.errors import JobNotFoundError, UsageError


def test_queued(bench: Bench) -> None:
    bench.register(task("ship", retries=2))
    job_id = bench.submit("ship", parent_id="a:n1-0", root_id="r:n1-0")
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.lane, job.attempt, job.max_attempts) == (JobStatus.QUEUED, "n", 1, 3)
    assert (job.parent_id, job.root_id, job.payload) == ("a:n1-0", "r:n1-0", b'{"order_id":"A1"}')
    assert job.entry_id is not None
    assert job_id.endswith(job.entry_id)
    assert job.submitted_ms == job.since_ms


def test_high(bench: Bench) -> None:
    bench.register(task("ship"))
    assert jobs.job(bench.broker, bench.keys, bench.submit("ship", priority="high")).lane == "h"


def test_queued_for_a_task_that_nobody_registered(bench: Bench) -> None:
    job = jobs.job(bench.broker, bench.keys, bench.submit("ship"))
    assert (job.status, job.max_attempts) == (JobStatus.QUEUED, None)


def test_running_tells_who_has_it(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.take()
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.worker, job.worker_record and job.worker_record["pid"]) == (
        JobStatus.RUNNING,
        "consumer-1",
        4711,
    )
    assert job.started_ms is not None
    assert job.submitted_ms is not None
    assert job.started_ms >= job.submitted_ms - 5


def test_delayed(bench: Bench) -> None:
    bench.register(task("ship"))
    job = jobs.job(bench.broker, bench.keys, bench.submit("ship", delay_s=60.0))
    assert job.status is JobStatus.DELAYED
    assert job.due_ms is not None
    assert job.submitted_ms is not None
    assert job.due_ms - job.submitted_ms == pytest.approx(60_000, abs=5)


def test_between_two_attempts(bench: Bench) -> None:
    bench.register(task("ship", retries=2))
    job_id = bench.submit("ship")
    bench.retry_later(bench.take(), 60_000)
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.attempt, job.max_attempts) == (JobStatus.DELAYED, 2, 3)


def test_done(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.finish(bench.take(), b'{"ok":1}')
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.value, job.started_ms, job.finished_ms) == (JobStatus.DONE, b'{"ok":1}', 1_000, 2_000)


def test_failed_for_good_is_known_by_its_result_and_then_by_its_dead_letter(bench: Bench) -> None:
    bench.register(task("ship"))
    [job_id] = bench.dead("ship")
    for dead_letter in (False, True):
        job = jobs.job(bench.broker, bench.keys, job_id)
        assert (job.status, job.reason, job.dead_letter) == (JobStatus.FAILED, FailureReason.ERROR, dead_letter)
        assert job.error is not None
        assert job.error.message == "no such order"
        bench.broker.command("DEL", bench.keys.result(job_id))


def test_after_a_crash_it_is_found_in_lane_back(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.crash(bench.take())
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.lane, job.crashes, job.cause) == (JobStatus.QUEUED, "b", 1, "signal:SIGSEGV")


def test_progress_and_a_cancel_request_are_told(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.broker.command("HSET", bench.keys.notes, job_id, '{"progress": 0.5}')
    bench.broker.command("HSET", bench.keys.cancel, job_id, 123)
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.progress, job.cancel_ms) == ({"progress": 0.5}, 123)


@pytest.mark.parametrize("job_id", ["ship:n1-0", "ship:d1-1", "nobody:h5-5"])
def test_unknown(bench: Bench, job_id: str) -> None:
    with pytest.raises(JobNotFoundError):
        jobs.job(bench.broker, bench.keys, job_id)


def test_no_job_id(bench: Bench) -> None:
    with pytest.raises(UsageError, match="is not a job id"):
        jobs.job(bench.broker, bench.keys, "ship")
