"""page_jobs: the delayed set soonest first, dead letters newest first, in pages."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.calls import inspect as inspect_calls
from upnext.engine.views import dead_letters, jobs


def test_delayed_jobs_soonest_first(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    late = bench.submit("ship", delay_s=90.0)
    soon = bench.submit("ship", delay_s=30.0, priority="high")
    other = bench.submit("pack", delay_s=60.0)
    found = jobs.jobs(bench.broker, bench.keys, JobStatus.DELAYED)
    assert [job.job_id for job in found] == [soon, other, late]
    assert [job.lane for job in found] == ["h", "n", "n"]
    assert all(job.payload is None for job in found)
    assert [job.job_id for job in jobs.jobs(bench.broker, bench.keys, JobStatus.DELAYED, "pack")] == [other]


def test_dead_letters_newest_first_with_their_errors(bench: Bench) -> None:
    bench.register(task("ship"))
    [first] = bench.dead("ship")
    [second] = bench.dead("ship")
    bench.broker.command("ZADD", bench.keys.dead, 1, first)
    found = jobs.dead_letters(bench.broker, bench.keys)
    assert [job.job_id for job in found] == [second, first]
    assert [job.error and job.error.type for job in found] == ["ValueError", "ValueError"]
    assert jobs.jobs(bench.broker, bench.keys, JobStatus.DEAD) == found
    assert dead_letters.ids_of(bench.broker, bench.keys) == [second, first]


def test_pages_go_on_where_the_last_ended(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    submitted = [bench.submit("ship" if number % 3 else "pack", delay_s=60.0 + number) for number in range(20)]
    wanted = [job_id for job_id in submitted if job_id.startswith("ship")]
    for look in (1, 2, 7, 20, 21):
        for limit in (1, 3, 50):
            found: list[str] = []
            rank: int | None = 0
            while rank is not None:
                page = bench.broker.run(
                    inspect_calls.page_jobs(bench.keys, dead=False, task="ship", rank=rank, look=look, limit=limit)
                )
                assert len(page.jobs) <= min(look, limit)
                found += [job_id for job_id, _ in page.jobs]
                rank = page.next_rank
            assert found == wanted


def test_nothing(bench: Bench) -> None:
    assert jobs.jobs(bench.broker, bench.keys, JobStatus.DELAYED) == []
    assert jobs.dead_letters(bench.broker, bench.keys) == []
