"""fetch: takes jobs within a total budget, lanes in order, limits and pauses kept."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import CONSUMER, OTHER, Workbench, task
from upnext.core.spec import RateLimit
from upnext.core.submission import Submission
from upnext.engine.calls import worker
from upnext.engine.calls.worker import Fetched
from upnext.engine.redis.replies import ReapedError


def raw(work: Workbench, budget: int = 10, *, most_limited: int = 10, suspect: bool = False) -> Fetched:
    return work.broker.run(
        worker.fetch(
            work.keys,
            work.epoch,
            CONSUMER,
            work.names,
            budget=budget,
            suspect=suspect,
            lanes=["bhn"] * len(work.names),
            most_limited=most_limited,
        )
    )


def count(fetched: Fetched) -> int:
    return sum(len(entries) for _, _, entries in fetched.entries)


def test_the_budget_is_a_total_over_tasks_and_lanes(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    for name in "ab":
        for priority in ("normal", "high"):
            for _ in range(3):
                work.submit(name, priority=priority)
    assert count(raw(work, 7)) == 7
    assert count(raw(work, 100)) == 5
    assert count(raw(work, 100)) == 0
    assert raw(work, 0).entries == []


def test_lanes_come_in_the_order_that_was_asked_for(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.hand_back(work.take())
    work.submit("ship")
    work.submit("ship", priority="high")
    assert [one.lane for one in work.fetch(lanes="hnb")] == ["h", "n", "b"]


def test_nothing_is_fetched_twice(work: Workbench) -> None:
    work.register(task("ship"))
    work.register(task("ship"), consumer=OTHER)
    jobs = {work.submit("ship") for _ in range(6)}
    got = [one.job_id for consumer in (CONSUMER, OTHER) for one in work.fetch(3, consumer=consumer)]
    assert (set(got), len(got)) == (jobs, 6)


def test_a_paused_task_is_left_alone(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    work.submit("a")
    work.submit("b")
    work.broker.command("SADD", work.keys.paused, "a")
    assert [one.task for one in work.fetch()] == ["b"]
    work.broker.command("SREM", work.keys.paused, "a")
    assert [one.task for one in work.fetch()] == ["a"]


def test_a_suspect_is_for_an_idle_worker_and_nothing_comes_with_it(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    for number in range(2):
        work.add("ship", "x", "p1", b"{}", "m", b'{"i":"ship:n%d-0","l":"n"}' % number)
    assert [one.lane for one in work.fetch(1)] == ["n"]
    assert work.fetch() == []
    assert [(one.lane, one.job_id) for one in work.fetch(10, suspect=True)] == [("x", "ship:n0-0")]
    assert [one.job_id for one in work.fetch(10, suspect=True)] == ["ship:n1-0"]


def test_a_paused_suspect_stays(work: Workbench) -> None:
    work.register(task("ship"))
    work.add("ship", "x", "p1", b"{}", "m", b'{"i":"ship:n1-0","l":"n"}')
    work.broker.command("SADD", work.keys.paused, "ship")
    assert work.fetch(suspect=True) == []


def test_concurrency_counts_what_is_pending_anywhere(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=3))
    work.register(task("ship", max_concurrency=3), consumer=OTHER)
    for _ in range(5):
        work.submit("ship")
    first = work.fetch(2, consumer=OTHER)
    got = raw(work)
    assert (count(got), got.held_back) == (1, True)
    assert raw(work).held_back
    work.finish(first[0])
    assert count(raw(work)) == 1


def test_concurrency_counts_for_suspects_too(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=1))
    work.register(task("ship", max_concurrency=1), consumer=OTHER)
    work.submit("ship")
    [running] = work.fetch(consumer=OTHER)
    work.add("ship", "x", "p1", b"{}", "m", b'{"i":"ship:n1-0","l":"n"}')
    assert work.fetch(suspect=True) == []
    work.finish(running)
    assert [one.lane for one in work.fetch(suspect=True)] == ["x"]


def test_of_a_limited_task_no_more_than_can_start(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=10))
    for _ in range(5):
        work.submit("ship")
    assert count(raw(work, most_limited=0)) == 0
    assert count(raw(work, most_limited=2)) == 2


def test_a_rate_spreads_starts_and_says_when_to_ask_again(work: Workbench) -> None:
    work.register(task("ship", rate_limit=RateLimit(2, 60.0)))
    for _ in range(5):
        work.submit("ship")
    got = raw(work)
    assert count(got) == 1
    assert got.retry_after_ms is not None
    assert 25_000 < got.retry_after_ms <= 30_006, "half a minute, and what the slack for late askers takes"
    again = raw(work)
    assert (count(again), again.held_back) == (0, True)
    assert again.retry_after_ms is not None
    assert again.retry_after_ms <= got.retry_after_ms


def test_a_rate_is_not_used_up_by_looking(work: Workbench) -> None:
    work.register(task("ship", rate_limit=RateLimit(1, 60.0)))
    for _ in range(5):
        assert count(raw(work)) == 0
    assert work.broker.command("EXISTS", work.keys.gcra) == 0
    work.submit("ship")
    assert count(raw(work)) == 1


def test_no_tasks(work: Workbench) -> None:
    work.register()
    got = raw(work)
    assert (got.entries, got.retry_after_ms, got.held_back) == ([], None, False)
    assert abs(got.server_ms - work.now_ms()) < 5_000


def test_a_consumer_without_a_lease_gets_nothing(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.reap()
    before = work.everything()
    with pytest.raises(ReapedError, match=CONSUMER):
        raw(work)
    assert work.everything() == before


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.refuses_another_epoch(
        lambda epoch: worker.fetch(work.keys, epoch, CONSUMER, work.names, budget=1, lanes=["n"], most_limited=1)
    )


def test_the_largest_job_of_a_task_is_noted_by_producers_and_else_by_the_fetch(work: Workbench) -> None:
    work.register(task("ship"), task("pack"), task("note"))
    for size in (9_000, 5_000, 4_000):
        work.broker.submit(Submission("ship", b'"%s"' % (b"x" * (size - 2))))
    work.broker.send("sent", b'"%s"' % (b"x" * 5_998), ["note"])
    assert work.hash(work.keys.large) == {"ship": "9000", "note": "6000"}
    for _ in range(5):
        work.broker.command("XADD", work.keys.stream("pack", "n"), "*", "p1", b'"%s"' % (b"x" * 7_998))
    work.fetch(5)
    assert work.hash(work.keys.large) == {"ship": "9000", "note": "6000", "pack": "8000"}
    work.broker.submit(Submission("pack", b'"%s"' % (b"x" * 9_998)))
    assert work.hash(work.keys.large)["pack"] == "10000"
