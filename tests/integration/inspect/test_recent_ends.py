"""recent_ends: the newest ends, with what is still known of them."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.views import jobs


def test_newest_first_by_status_and_task(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    done = [bench.submit("ship") for _ in range(3)]
    for one in bench.fetch():
        bench.finish(one, b"7")
    [failed] = bench.dead("ship")
    packed = bench.submit("pack")
    bench.finish(bench.take())
    assert [job.job_id for job in jobs.jobs(bench.broker, bench.keys, JobStatus.DONE)] == [packed, *reversed(done)]
    assert [job.value for job in jobs.jobs(bench.broker, bench.keys, JobStatus.DONE, "ship", 2)] == [b"7", b"7"]
    assert [job.job_id for job in jobs.jobs(bench.broker, bench.keys, JobStatus.FAILED)] == [failed]
    assert [job.job_id for job in jobs.jobs(bench.broker, bench.keys, limit=2)] == [packed, failed]


def test_an_end_whose_result_is_gone(bench: Bench) -> None:
    bench.register(task("ship"))
    job_id = bench.submit("ship")
    bench.finish(bench.take(), ttl_ms=0)
    [job] = jobs.jobs(bench.broker, bench.keys, JobStatus.DONE)
    assert (job.job_id, job.status) == (job_id, JobStatus.DONE)
    assert job.finished_ms is not None


def test_what_lives_again_is_not_listed_as_ended(bench: Bench) -> None:
    from upnext.engine.views import dead_letters

    bench.register(task("ship"))
    [job_id] = bench.dead("ship")
    dead_letters.retry(bench.broker, bench.keys, [job_id])
    assert [(job.job_id, job.status) for job in jobs.jobs(bench.broker, bench.keys)] == [(job_id, JobStatus.QUEUED)]


def test_lineage_finds_the_descendants_wherever_they_are(bench: Bench) -> None:
    bench.register(task("ship"))
    root = bench.submit("ship")
    child = bench.submit("ship", parent_id=root, root_id=root)
    bench.submit("ship", parent_id="x:n1-0", root_id="x:n1-0")
    grandchild = bench.submit("ship", parent_id=child, root_id=root, delay_s=60.0)
    [_, second, _] = bench.fetch()
    assert second.job_id == child
    bench.fail(second)
    found = jobs.lineage(bench.broker, bench.keys, root)
    assert {(job.job_id, job.parent_id) for job in found} == {(child, root), (grandchild, child)}
