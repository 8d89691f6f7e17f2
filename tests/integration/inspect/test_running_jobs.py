"""running_jobs: what a consumer holds."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.views import jobs


def test_who_has_which(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.register(task("ship"), consumer="consumer-2")
    first, second = bench.submit("ship"), bench.submit("ship")
    bench.submit("ship")
    bench.take()
    bench.take(consumer="consumer-2")
    running = jobs.jobs(bench.broker, bench.keys, JobStatus.RUNNING)
    assert [(job.job_id, job.worker) for job in running] == [(first, "consumer-1"), (second, "consumer-2")]
    assert all(job.started_ms is not None for job in running)
    assert [(job.worker_record or {})["pid"] for job in running] == [4711, 4711]


def test_one_workers(bench: Bench) -> None:
    bench.register(task("pack"), consumer="other")
    bench.broker.command("HSET", bench.keys.consumers, "other", b'{"worker": "w2", "tasks": ["pack"]}')
    bench.register(task("ship"))
    first, waiting = bench.submit("ship"), bench.submit("ship")
    bench.take()
    packed = bench.submit("pack")
    bench.register(task("pack"), consumer="third")
    taken = bench.take(consumer="third")
    assert taken.job_id == packed

    def ids(worker: str, status: JobStatus | None = None) -> list[str]:
        return [job.job_id for job in jobs.of_worker(bench.broker, bench.keys, worker, status)]

    assert ids("w") == [packed, first, waiting]
    assert ids("w", JobStatus.QUEUED) == [waiting]
    assert ids("consumer-1") == [first]
    assert ids("w2") == []
    assert ids("none") == []


def test_the_limit_and_the_task(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    for _ in range(3):
        bench.submit("ship", priority="high")
        bench.submit("ship")
    bench.fetch()
    assert len(jobs.jobs(bench.broker, bench.keys, JobStatus.RUNNING, limit=4)) == 4
    assert len(jobs.jobs(bench.broker, bench.keys, JobStatus.RUNNING, "ship")) == 6
    assert jobs.jobs(bench.broker, bench.keys, JobStatus.RUNNING, "pack") == []


def test_none_after_the_end(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship")
    bench.finish(bench.take())
    assert jobs.jobs(bench.broker, bench.keys, JobStatus.RUNNING) == []
