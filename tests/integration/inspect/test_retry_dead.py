"""retry_dead: a dead letter lives again under its own id."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.core.spec import RateLimit
from upnext.engine.views import dead_letters, jobs


def test_it_keeps_its_id_and_starts_anew(bench: Bench) -> None:
    bench.register(task("ship", retries=1))
    job_id = bench.submit("ship", parent_id="a:n1-0", root_id="r:n1-0")
    bench.fail(bench.take())
    assert dead_letters.retry(bench.broker, bench.keys, [job_id]) == dead_letters.Handled([job_id], [])
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.status, job.lane, job.attempt, job.crashes) == (JobStatus.QUEUED, "n", 1, 0)
    assert (job.parent_id, job.root_id, job.payload) == ("a:n1-0", "r:n1-0", b'{"order_id":"A1"}')
    assert bench.left(["dead", "r:"]) == []
    taken = bench.take()
    assert taken.job_id == job_id
    bench.finish(taken, b"5")
    assert jobs.job(bench.broker, bench.keys, job_id).value == b"5"
    assert bench.left(["where", "dead"]) == []


def test_it_can_die_again(bench: Bench) -> None:
    bench.register(task("ship"))
    [job_id] = bench.dead("ship")
    dead_letters.retry(bench.broker, bench.keys, [job_id])
    bench.fail(bench.take())
    assert dead_letters.ids_of(bench.broker, bench.keys) == [job_id]
    assert bench.left(["where"]) == []


def test_after_crashes_and_in_its_own_lane(bench: Bench) -> None:
    bench.register(task("ship", max_crashes=1))
    job_id = bench.submit("ship", priority="high")
    bench.crash(bench.take())
    dead_letters.retry(bench.broker, bench.keys, [job_id])
    job = jobs.job(bench.broker, bench.keys, job_id)
    assert (job.lane, job.crashes, job.cause) == ("h", 0, None)


def test_one_that_was_born_delayed(bench: Bench) -> None:
    from upnext.engine.calls import lease

    bench.register(task("ship"))
    job_id = bench.submit("ship", delay_s=0.0)
    bench.broker.run(lease.promote(bench.keys, bench.epoch, 10))
    bench.fail(bench.take())
    dead_letters.retry(bench.broker, bench.keys, [job_id])
    assert bench.take().job_id == job_id


def test_many_and_unknown_ones(bench: Bench) -> None:
    bench.register(task("ship"))
    submitted = bench.dead("ship", 600)
    handled = dead_letters.retry(bench.broker, bench.keys, [*submitted, "ship:n1-0"])
    assert (len(handled.done), handled.unknown) == (600, ["ship:n1-0"])
    assert len(bench.fetch(1000)) == 600
    assert dead_letters.retry(bench.broker, bench.keys, submitted[:2]).unknown == submitted[:2]


def test_the_bell_rings_for_a_limited_task(bench: Bench) -> None:
    bench.register(task("ship", rate_limit=RateLimit(1000, 1.0)))
    [job_id] = bench.dead("ship")
    with bench.bell() as words:
        dead_letters.retry(bench.broker, bench.keys, [job_id])
    assert words == ["tship"]


def test_its_idempotency_key_stays_free(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship", idempotency_key="k")
    bench.fail(bench.take())
    other = bench.submit("ship", idempotency_key="k")
    assert dead_letters.retry(bench.broker, bench.keys, [job_id]) == dead_letters.Handled([job_id], [])
    for taken in bench.fetch():
        bench.finish(taken)
    assert jobs.job(bench.broker, bench.keys, job_id).status is JobStatus.DONE
    assert jobs.job(bench.broker, bench.keys, other).status is JobStatus.DONE
    assert bench.left(["idem"]) == []
