"""job_states: how several jobs stand, in one word each."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.calls import inspect


def test_one_word_each(bench: Bench) -> None:
    bench.register(task("ship"))
    done, died, running = (bench.submit("ship") for _ in range(3))
    first, second, third = bench.fetch(3)
    bench.finish(first)
    bench.fail(second, ttl_ms=0)
    queued, delayed = bench.submit("ship", priority="high"), bench.submit("ship", delay_s=60.0)
    assert third.job_id == running
    ids = [done, died, running, queued, delayed, "ship:n1-1", "ship:d1-1"]
    assert bench.broker.run(inspect.job_states(bench.keys, ids)) == [
        JobStatus.DONE, JobStatus.DEAD, JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.DELAYED, None, None,
    ]  # fmt: skip


def test_one_that_moved(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.crash()
    bench.register(task("ship"), consumer="another")
    one = bench.take(consumer="another")
    bench.crash(one, consumer="another")
    assert bench.broker.run(inspect.job_states(bench.keys, [job_id])) == [JobStatus.QUEUED]
