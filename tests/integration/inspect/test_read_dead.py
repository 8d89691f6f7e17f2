"""read_dead: one dead letter with everything that was kept."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import FailureReason, JobStatus
from upnext.engine.views import jobs
from upnext.errors import JobNotFoundError


def test_payload_error_and_traceback(bench: Bench) -> None:
    bench.register(task("ship"))
    [job_id] = bench.dead("ship")
    job = jobs.dead_letter(bench.broker, bench.keys, job_id)
    assert (job.status, job.payload, job.dead_letter) == (JobStatus.FAILED, b'{"order_id":"A1"}', True)
    assert job.error is not None
    assert job.error.traceback.startswith("Traceback")


def test_buried_by_crashes(bench: Bench) -> None:
    bench.register(task("ship", max_crashes=1))
    job_id = bench.submit("ship")
    bench.crash(bench.take())
    job = jobs.dead_letter(bench.broker, bench.keys, job_id)
    assert (job.status, job.reason, job.cause, job.crashes) == (
        JobStatus.DEAD,
        FailureReason.CRASH,
        "signal:SIGSEGV",
        1,
    )
    assert job.payload == b'{"order_id":"A1"}'


def test_a_living_job_is_no_dead_letter(bench: Bench) -> None:
    bench.register(task("ship"))
    with pytest.raises(JobNotFoundError):
        jobs.dead_letter(bench.broker, bench.keys, bench.submit("ship"))
