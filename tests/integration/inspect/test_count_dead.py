"""count_dead: dead letters by task and group, a slice after the other."""

from __future__ import annotations

from tests.integration.inspect.bench import Bench, task
from upnext.core.entry import Meta, encode_meta, pack
from upnext.core.outcome import ErrorInfo, JobStatus, Outcome, encode
from upnext.engine.calls import inspect
from upnext.engine.views import dead_letters, ends, jobs


def test_by_task_and_group(bench: Bench) -> None:
    bench.register(task("pack"), task("ship", max_crashes=1))
    failed = bench.dead("ship", 3)
    bench.dead("pack", 2)
    crashed = bench.submit("ship")
    bench.crash(bench.take())
    found = ends.all_dead_groups(bench.broker, bench.keys)
    assert [(one.task, one.count, one.ended, one.about and one.about.type) for one in found] == [
        ("ship", 3, 3, "ValueError"),
        ("pack", 2, 2, "ValueError"),
        ("ship", 1, 1, "WorkerCrash"),
    ]
    assert found[0].job_id in failed
    assert found[2].job_id == crashed
    handled = dead_letters.retry(
        bench.broker, bench.keys, dead_letters.ids_of(bench.broker, bench.keys, "ship", found[0].group)
    )
    assert sorted(handled.done) == sorted(failed)
    again = ends.all_dead_groups(bench.broker, bench.keys, "ship")
    assert [(one.count, one.ended, one.job_id) for one in again] == [(1, 1, crashed)]


def test_letters_of_an_older_version_have_no_group(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.dead("ship")
    outcome = Outcome(JobStatus.FAILED, error=ErrorInfo("OldError", "m"))
    meta = encode_meta(Meta(outcome={"s": "failed", "e": {"type": "OldError", "message": "m"}}))
    bench.broker.command("HSET", bench.keys.dead_jobs, "ship:n1-1", pack("n", meta, b"{}"))
    bench.broker.command("ZADD", bench.keys.dead, 1, "ship:n1-1")
    assert encode(outcome)
    found = {one.group: one.count for one in ends.all_dead_groups(bench.broker, bench.keys)}
    assert found.pop("") == 1
    assert list(found.values()) == [1]
    [old] = jobs.dead_letters(bench.broker, bench.keys, "ship", group="")
    assert old.job_id == "ship:n1-1"
    assert ends.about(old).type == "OldError"


def test_slices_add_up_and_what_stands_still_is_not_counted_again(bench: Bench) -> None:
    bench.register(task("ship"))
    for _ in range(6):
        bench.dead("ship", 100)
    counter = ends.DeadCounter()
    while not counter.whole:
        counter.step(bench.broker, bench.keys, "state", 100, 0.0)
    assert counter.by_task() == {"ship": 600}
    bench.dead("ship", 1)
    counter.step(bench.broker, bench.keys, "state", 10_000, 1.0)
    assert counter.by_task() == {"ship": 600}
    counter.step(bench.broker, bench.keys, "another", 10_000, 1.0)
    assert counter.by_task() == {"ship": 601}


def test_what_is_no_packed_job_counts_without_a_group(bench: Bench) -> None:
    bench.broker.command("ZADD", bench.keys.dead, 5, "ship:n1-1", 7, "x")
    bench.broker.command("HSET", bench.keys.dead_jobs, "x", "garbage")
    _, counts = bench.broker.run(inspect.count_dead(bench.keys, "0", 100))
    assert sorted((one.task, one.group, one.count, one.last_ms) for one in counts) == [
        ("", "", 1, 7),
        ("ship", "", 1, 5),
    ]
