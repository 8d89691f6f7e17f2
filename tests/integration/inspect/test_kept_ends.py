"""kept_ends: the newest successes of a task and the newest ends of each of its groups, whatever the others do."""

from __future__ import annotations

import time

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.engine.calls import client, inspect, worker
from upnext.engine.calls.worker import Finish
from upnext.engine.views import ends, jobs


def run_all(bench: Bench, name: str, count: int) -> list[str]:
    """-> the ids in the order of their ends."""
    for _ in range(count):
        bench.submit(name)
    ended: list[str] = []
    while taken := bench.fetch(1000):
        done = [Finish(one.task, one.lane, one.entry_id, JobStatus.DONE, b'{"s":"done"}') for one in taken]
        now_ms = time.time_ns() // 1_000_000
        assert bench.broker.run(worker.finish(bench.keys, bench.epoch, done, {name: 60_000}, now_ms)) == []
        ended += [one.job_id for one in taken]
    return ended


def test_a_busy_task_pushes_out_no_end_of_another(bench: Bench) -> None:
    bench.register(task("quiet"), task("busy"))
    quiet = run_all(bench, "quiet", 3)
    [failed] = bench.dead("quiet")
    for _ in range(3):
        run_all(bench, "busy", 900)
    bench.broker.command(
        "DEL", bench.keys.ends
    )  # what is remembered for all together lasts about a second in such a system
    found = jobs.jobs(bench.broker, bench.keys, JobStatus.DONE, "quiet")
    assert {one.job_id for one in found} == set(quiet)
    assert [one.job_id for one in jobs.jobs(bench.broker, bench.keys, JobStatus.FAILED)] == [failed]
    assert len(jobs.jobs(bench.broker, bench.keys, JobStatus.DONE, "busy")) == 100


def test_the_newest_hundred_are_kept_in_their_order(bench: Bench) -> None:
    bench.register(task("busy"))
    ended = [job_id for _ in range(5) for job_id in run_all(bench, "busy", 60)]
    looked_at, kept = bench.broker.run(inspect.kept_ends(bench.keys, ["busy"], [JobStatus.DONE], 100))
    assert looked_at == 1
    assert {one.job_id for one in kept} == set(ended[-100:])
    assert bench.broker.command("LLEN", bench.keys.done("busy")) <= 260


def test_the_newest_hundred_of_a_group(bench: Bench) -> None:
    bench.register(task("ship"))
    died = [job_id for _ in range(5) for job_id in bench.dead("ship", 70)]
    cancelled = bench.submit("ship")
    bench.broker.run(client.cancel(bench.keys, cancelled))
    groups = {one.letter: one.name for one in ends.groups(bench.broker, bench.keys)}
    found = jobs.of_group(bench.broker, bench.keys, "ship", groups["f"])
    assert {one.job_id for one in found} == set(died[-100:])
    assert {one.error.type for one in found if one.error} == {"ValueError"}
    assert [one.job_id for one in jobs.of_group(bench.broker, bench.keys, "ship", groups["c"])] == [cancelled]
    assert [one.job_id for one in jobs.jobs(bench.broker, bench.keys, JobStatus.CANCELLED)] == [cancelled]


def test_a_batch_of_more_than_a_hundred_keeps_its_last(bench: Bench) -> None:
    bench.register(task("ship"))
    died = bench.dead("ship", 250)
    [group] = ends.groups(bench.broker, bench.keys)
    assert group.count == 250
    assert {one.job_id for one in jobs.of_group(bench.broker, bench.keys, "ship", group.name)} == set(died[-100:])


def test_a_call_ends_after_a_while_and_goes_on(bench: Bench) -> None:
    names = [f"t{number}" for number in range(60)]
    bench.register(*map(task, names))
    for name in names:
        run_all(bench, name, 100)
    bench.broker.command("DEL", bench.keys.ends)
    looked_at, _ = bench.broker.run(inspect.kept_ends(bench.keys, names, [JobStatus.DONE], 10))
    assert looked_at < 60
    assert len(jobs.jobs(bench.broker, bench.keys, JobStatus.DONE, limit=6000)) == 6000
