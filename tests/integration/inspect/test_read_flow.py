"""read_flow: the jobs below a root, written where they are submitted and where they end."""

from __future__ import annotations

import time

import pytest

from tests.integration.inspect.bench import Bench, task
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import client, worker
from upnext.engine.calls.worker import Finish
from upnext.engine.views import dead_letters, flows, tasks

ROOT = "root:n1-0"


def child(bench: Bench, name: str = "ship", parent: str = ROOT, **options: float) -> str:
    return bench.submit(name, parent_id=parent, root_id=ROOT, **options)


def states(bench: Bench) -> dict[str, str]:
    return {one.job_id: one.status.value for one in flows.below(bench.broker, bench.keys, ROOT)}


def test_every_state_of_a_child(bench: Bench) -> None:
    bench.register(task("ship"), task("quick"))
    done, died, running = child(bench), child(bench), child(bench)
    first, second, third = bench.fetch(3)
    assert (first.job_id, second.job_id, third.job_id) == (done, died, running)
    bench.finish(first, ttl_ms=0)
    bench.fail(second, ttl_ms=0)
    queued, delayed, cancelled = child(bench), child(bench, delay_s=60.0), child(bench, parent=done)
    bench.broker.run(client.cancel(bench.keys, cancelled))
    expected = {
        done: "done", died: "failed", running: "running", queued: "queued", delayed: "delayed", cancelled: "cancelled",
    }  # fmt: skip
    assert states(bench) == expected
    parents = {one.job_id: one.parent_id for one in flows.below(bench.broker, bench.keys, ROOT)}
    assert (parents[done], parents[cancelled]) == (ROOT, done)
    dead_letters.retry(bench.broker, bench.keys, [died])
    assert states(bench)[died] == "queued"
    tasks.purge(bench.broker, bench.keys, "ship")
    assert states(bench) == {**expected, died: "cancelled", queued: "cancelled", delayed: "cancelled"}
    assert 0 < bench.broker.command("TTL", bench.keys.flow(ROOT)) <= 86_400


def test_a_crash_and_an_event_are_below_the_root_too(bench: Bench) -> None:
    bench.register(task("ship", max_crashes=1), task("paid.mail", event="paid"))
    crashed = child(bench)
    bench.crash(bench.take())
    [mailed] = bench.broker.send("paid", b"{}", ["paid.mail"], ROOT, ROOT)
    assert states(bench) == {crashed: "dead", mailed: "queued"}


def test_a_job_without_a_parent_writes_no_index(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.submit("ship")
    bench.finish(bench.take())
    assert bench.left(["f:"]) == []


def test_children_of_an_older_version_are_looked_for_among_all(bench: Bench) -> None:
    bench.register(task("ship"))
    one = child(bench)
    bench.broker.command("DEL", bench.keys.flow(ROOT))
    assert states(bench) == {one: "queued"}


def test_one_that_is_forgotten_is_left_out(bench: Bench) -> None:
    bench.register(task("ship"))
    kept, lost = child(bench), child(bench)
    bench.broker.command("XDEL", bench.keys.stream("ship", "n"), lost.rpartition("n")[2])
    assert states(bench) == {kept: "queued"}


@pytest.mark.parametrize("row", ["", "garbage", "o x p", "o 99999999999999999 p"])
def test_a_row_that_cannot_be_read_is_left_out(bench: Bench, row: str) -> None:
    bench.register(task("ship"))
    kept = child(bench)
    bench.broker.command("HSET", bench.keys.flow(ROOT), "ship:n1-1", row, "no id", "o 1 p")
    assert states(bench) == {kept: "queued"}


def test_a_key_of_another_type_harms_no_submit_and_no_end(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.broker.command("SET", bench.keys.flow(ROOT), "text")
    child(bench)
    bench.finish(bench.take())
    assert tasks.one(bench.broker, bench.keys, "ship").stats == {"done": 1}


def test_those_that_ended_first_make_room(bench: Bench) -> None:
    bench.register(task("ship"))
    rows = [part for number in range(10_000) for part in (f"ship:n1-{number}", f"d {number} {ROOT}")]
    for start in range(0, len(rows), 2_000):
        bench.broker.command("HSET", bench.keys.flow(ROOT), *rows[start : start + 2_000])
    new = child(bench)
    assert states(bench)[new] == "queued"
    assert bench.broker.command("HLEN", bench.keys.flow(ROOT)) <= 10_000


def test_two_thousand_children_are_read_in_time(bench: Bench) -> None:
    """Measured: 30 ms."""
    bench.register(task("ship"))
    bench.broker.submit_many([Submission("ship", b"{}", parent_id=ROOT, root_id=ROOT)] * 2_000)
    taken = bench.fetch(1_000)
    ends = [Finish(one.task, one.lane, one.entry_id, JobStatus.DONE, b'{"s":"done"}', one.meta) for one in taken[:500]]
    bench.broker.run(worker.finish(bench.keys, bench.epoch, ends, {"ship": 60_000}, time.time_ns() // 1_000_000))
    begun = time.monotonic()
    found = list(states(bench).values())
    assert time.monotonic() - begun < 1.0
    counts = {state: found.count(state) for state in set(found)}
    assert counts == {"done": 500, "running": len(taken) - 500, "queued": 2_000 - len(taken)}
