"""purge_queued: what waits goes, what runs stays, nothing is left behind."""

from __future__ import annotations

import threading

import pytest

from tests.integration.inspect.bench import Bench, task
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus, Outcome
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs, tasks
from upnext.errors import DuplicateJobError, JobNotFoundError


def test_all_lanes_but_not_what_runs(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    back = bench.submit("ship")
    bench.crash(bench.take())
    bench.register(task("pack"), task("ship"), consumer="consumer-2")
    running = bench.submit("ship")
    taken = bench.take(lanes="n", consumer="consumer-2")
    waiting = [bench.submit("ship") for _ in range(1200)]
    waiting.append(bench.submit("ship", priority="high"))
    other = bench.submit("pack")
    purged = tasks.purge(bench.broker, bench.keys, "ship")
    assert (purged.queued, purged.delayed) == (len(waiting) + 1, 0)
    for job_id in (back, waiting[0], waiting[-1]):
        with pytest.raises(JobNotFoundError):
            jobs.job(bench.broker, bench.keys, job_id)
    assert jobs.job(bench.broker, bench.keys, running).status is JobStatus.RUNNING
    assert jobs.job(bench.broker, bench.keys, other).status is JobStatus.QUEUED
    bench.finish(taken)
    assert bench.broker.command("HLEN", bench.keys.where) == 0


def test_the_task_works_on_afterwards(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship")
    tasks.purge(bench.broker, bench.keys, "ship")
    job_id = bench.submit("ship")
    assert bench.take().job_id == job_id


def test_idempotency_keys_are_free_again(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship", idempotency_key="k")
    with pytest.raises(DuplicateJobError):
        bench.submit("ship", idempotency_key="k")
    tasks.purge(bench.broker, bench.keys, "ship")
    assert bench.left(["idem"]) == []
    bench.submit("ship", idempotency_key="k")


def test_who_waits_is_told(bench: Bench, redis_url: str, namespace: str) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    waiter = SyncQueueClient(redis_url, namespace)
    got: list[Outcome] = []
    thread = threading.Thread(target=lambda: got.append(waiter.wait(job_id, 20)))
    thread.start()
    wait_until(lambda: bench.broker.command("HLEN", bench.keys.waiters), 10, "the waiter to register")
    tasks.purge(bench.broker, bench.keys, "ship")
    thread.join(60)
    waiter.close()
    assert [(one.status, one.cause) for one in got] == [(JobStatus.CANCELLED, "purged")]
    assert bench.broker.command("HLEN", bench.keys.waiters) == 0
