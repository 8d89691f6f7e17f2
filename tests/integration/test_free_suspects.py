"""free_suspects: once the culprit of a crash is known, its other suspects are as any other job."""

from __future__ import annotations

from itertools import count

import pytest

from tests.integration.lua_harness import CONSUMER, OTHER, Taken, Workbench, task
from upnext.core.submission import Submission
from upnext.engine.calls import lease


def free(work: Workbench, crash: str = CONSUMER, name: str = "ship") -> list[int]:
    """How many each call moved, until all were looked at."""
    moved: list[int] = []
    after: str | None = ""
    for _ in count():
        if after is None:
            break
        here, after = work.broker.run(lease.free_suspects(work.keys, work.epoch, crash, name, after))
        moved.append(here)
    return moved


def crashed(work: Workbench, jobs: int, *, payload: bytes = b"{}", consumer: str = CONSUMER) -> list[str]:
    """So many suspects of one crash. -> their ids"""
    work.register(task("ship"), consumer=consumer)
    ids = work.broker.submit_many([Submission("ship", payload)] * jobs)
    started: list[Taken] = []
    while len(started) < jobs:  # one call of either is bounded in count and in bytes
        started += work.fetch(jobs - len(started), consumer=consumer)
    while work.pending("ship"):
        work.reap(consumer, *started, charge="crash")
    return ids


def test_they_go_back_uncharged_and_unsuspected(work: Workbench) -> None:
    jobs = crashed(work, 3)
    with work.bell() as words:
        assert free(work) == [3]
    assert words == ["b"]
    assert work.lengths("ship") == "b3"
    for meta in work.metas("ship", "b"):
        assert (meta.suspect, meta.suspect_of, meta.crashes, meta.cause, meta.lane) == (False, None, 0, None, "n")
    assert {meta.job_id for meta in work.metas("ship", "b")} == set(jobs)
    work.register(task("ship"))
    for one in work.fetch(10):
        work.finish(one)
    assert work.leaks() == []


def test_a_second_call_and_another_crash_change_nothing(work: Workbench) -> None:
    crashed(work, 2)
    before = work.everything()
    assert free(work, "another crash") == [0]
    assert work.everything() == before
    assert (free(work), free(work)) == ([2], [0])


def test_suspects_of_another_crash_stay(work: Workbench) -> None:
    crashed(work, 2)
    crashed(work, 2, consumer=OTHER)
    assert free(work, OTHER) == [2]
    assert [meta.suspect_of for meta in work.metas("ship", "x")] == [CONSUMER] * 2


def test_one_that_was_fetched_is_its_holders(work: Workbench) -> None:
    crashed(work, 3)
    work.register(task("ship"), consumer=OTHER)
    running = work.take(consumer=OTHER, suspect=True)
    assert free(work) == [2]
    work.finish(running)
    assert work.lengths("ship") == "b2"


def test_one_that_has_crashed_before_keeps_its_count_and_cause(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.reap(CONSUMER, work.take(), charge="crash", cause="oom")
    work.register(task("ship"))
    work.submit("ship")
    work.reap(CONSUMER, *work.fetch(), charge="crash", cause="oom")
    free(work)
    assert sorted((meta.crashes, meta.cause) for meta in work.metas("ship", "b") if meta.crashes) == [(1, "oom")]


@pytest.mark.parametrize(("jobs", "size"), [(3 * lease.MOST_FREED, 2), (20, 1_000_000)])
def test_a_call_is_bounded_in_count_and_in_bytes(work: Workbench, jobs: int, size: int) -> None:
    crashed(work, jobs, payload=b'"' + b"x" * size + b'"')
    moved = free(work)
    assert sum(moved) == jobs
    assert max(moved) <= lease.MOST_FREED
    assert max(moved) * size <= lease.MOST_FREED_BYTES + size


def test_what_is_no_job_is_passed_over(work: Workbench) -> None:
    crashed(work, 2)
    work.add("ship", "x", "junk", "1")
    work.add("ship", "x", "p1", "{}", "m", "not json")
    assert free(work) == [2]
    assert work.lengths("ship") == "b2 x2"


def test_another_epoch(work: Workbench) -> None:
    crashed(work, 2)
    work.refuses_another_epoch(lambda epoch: lease.free_suspects(work.keys, epoch, CONSUMER, "ship", ""))
