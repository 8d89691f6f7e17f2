"""list_groups: ends that are no success, counted by task, error, place and cause."""

from __future__ import annotations

import pytest

from tests.integration.inspect.bench import Bench, Taken, task
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome, encode
from upnext.engine.calls import client, worker
from upnext.engine.calls.worker import Finish
from upnext.engine.views import ends, tasks

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


def failure(one: Taken, type_: str = "ValueError", line: int = 1, *, bury: bool = True) -> Finish:
    trace = (
        f'Traceback (most recent call last):\n  File "/srv/releases/7/shop/mail.py", line {line}, in send\n{type_}: no'
    )
    error = ErrorInfo(type_, "no such order", trace)
    raw = encode(Outcome(JobStatus.FAILED, error=error, reason=FailureReason.ERROR))
    return Finish(one.task, one.lane, one.entry_id, JobStatus.FAILED, raw, None, bury)


def fail_all(bench: Bench, name: str, types: list[str], now_ms: int = NOW_MS) -> None:
    for _ in types:
        bench.submit(name)
    while taken := bench.fetch(100):
        failures = [failure(one, types.pop()) for one in taken]
        assert bench.broker.run(worker.finish(bench.keys, bench.epoch, failures, {name: 1000}, now_ms)) == []


def found(bench: Bench, name: str | None = None) -> list[tuple[str, str, int, str]]:
    return [
        (one.task, one.about.type, one.count, one.about.where) for one in ends.groups(bench.broker, bench.keys, name)
    ]


def test_alike_is_what_fails_alike_at_one_place(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    fail_all(bench, "ship", ["ValueError"] * 150 + ["KeyError"])
    fail_all(bench, "pack", ["KeyError"])
    where = "shop/mail.py:1 in send"
    assert sorted(found(bench)) == [
        ("pack", "KeyError", 1, where),
        ("ship", "KeyError", 1, where),
        ("ship", "ValueError", 150, where),
    ]
    assert found(bench, "pack") == [("pack", "KeyError", 1, where)]
    first = ends.groups(bench.broker, bench.keys, "pack")[0]
    assert (first.first_ms, first.last_ms, first.about.message) == (NOW_MS, NOW_MS, "no such order")


def test_every_way_to_end_counts(bench: Bench) -> None:
    bench.register(task("ship", max_crashes=1))
    waiting, late = bench.submit("ship"), bench.submit("ship", delay_s=60.0)
    for job_id in (waiting, late):
        assert bench.broker.run(client.cancel(bench.keys, job_id)) == client.ENDED
    bench.submit("ship")
    bench.submit("ship", delay_s=60.0)
    tasks.purge(bench.broker, bench.keys, "ship")
    bench.submit("ship")
    bench.crash(bench.take())
    groups = {(one.about.type, one.about.cause): one for one in ends.groups(bench.broker, bench.keys)}
    counts = {key: (one.count, one.letter) for key, one in groups.items()}
    assert counts == {
        ("Cancelled", ""): (2, "c"),
        ("Cancelled", "purged"): (2, "c"),
        ("WorkerCrash", "signal:SIGSEGV"): (1, "x"),
    }


def test_a_cancel_by_the_worker_is_in_the_group_of_other_cancels(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.broker.run(client.cancel(bench.keys, bench.submit("ship")))
    bench.submit("ship")
    one = bench.take()
    raw = encode(
        Outcome(JobStatus.CANCELLED, error=ErrorInfo("Cancelled", "cancelled"), reason=FailureReason.CANCELLED)
    )
    end = Finish(one.task, one.lane, one.entry_id, JobStatus.CANCELLED, raw)
    bench.broker.run(worker.finish(bench.keys, bench.epoch, [end], {"ship": 1000}, NOW_MS))
    assert found(bench) == [("ship", "Cancelled", 2, "")]


def test_a_flood_of_new_errors_pushes_nothing_out(bench: Bench) -> None:
    bench.register(task("pack"), task("ship"))
    fail_all(bench, "ship", ["First"])
    fail_all(bench, "pack", ["First"])
    fail_all(bench, "ship", [f"Error{number}" for number in range(60)])
    groups = ends.groups(bench.broker, bench.keys, "ship")
    assert len(groups) == 33
    assert sum(one.count for one in groups) == 61
    assert any(one.about.type == "First" for one in groups)
    assert next(one for one in groups if one.name == "~").count == 29
    assert found(bench, "pack") == [("pack", "First", 1, "shop/mail.py:1 in send")]


def test_what_was_quiet_for_an_hour_makes_room(bench: Bench) -> None:
    bench.register(task("ship"))
    fail_all(bench, "ship", [f"Old{number}" for number in range(32)])
    fail_all(bench, "ship", ["New"], NOW_MS + HOUR_MS + 1)
    groups = ends.groups(bench.broker, bench.keys, "ship")
    assert (len(groups), groups[0].about.type) == (32, "New")


@pytest.mark.parametrize("row", ["", "no row", "1 2 3 f [", "1 2 3 f []", "x 2 3 f {}"])
def test_a_row_that_cannot_be_read_is_left_out(bench: Bench, row: str) -> None:
    bench.register(task("ship"))
    fail_all(bench, "ship", ["ValueError"])
    bench.broker.command("HSET", bench.keys.groups, "ship\nabc", row, "other", "\x00")
    assert len(found(bench)) == 1


@pytest.mark.parametrize("kind", ["groups", "group_ids", "done"])
def test_a_key_of_another_type_harms_no_end(bench: Bench, kind: str) -> None:
    bench.register(task("ship"))
    key = bench.keys.done("ship") if kind == "done" else getattr(bench.keys, kind)
    bench.broker.command("SET", key, "text")
    fail_all(bench, "ship", ["ValueError"])
    bench.submit("ship")
    bench.finish(bench.take())
    bench.broker.run(client.cancel(bench.keys, bench.submit("ship")))
    facts = tasks.one(bench.broker, bench.keys, "ship")
    assert facts.stats == {"failed": 1, "done": 1, "cancelled": 1}
    assert bench.broker.command("GET", key) == b"text"
