"""retry: a failed attempt waits in the delayed set for its next one."""

from __future__ import annotations

from tests.integration.lua_harness import OTHER, Workbench, task
from upnext.engine.calls import worker
from upnext.engine.calls.worker import CANCELLED, RETRIED, STALE


def test_it_waits_and_comes_again_as_the_next_attempt(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    job_id = work.submit("ship", priority="high", parent_id="p:n1-0", root_id="r:n1-0", idempotency_key="k")
    started_us = work.now_us()
    assert work.retry(work.put_back(work.take(), delay_ms=300)) == [RETRIED]
    due_us = int(work.broker.command("ZSCORE", work.keys.delayed, job_id))
    assert started_us + 300_000 <= due_us <= work.now_us() + 300_000
    assert (work.lengths("ship"), work.pending("ship", "h")) == ("", 0)
    assert work.hash(work.keys.where) == {}
    assert work.stats() == {"ship:retried": 1}
    work.broker.command("ZADD", work.keys.delayed, 1, job_id)
    work.promote()
    again = work.take()
    assert (again.job_id, again.lane, again.meta.attempt) == (job_id, "h", 2)
    assert (again.meta.parent_id, again.meta.root_id) == ("p:n1-0", "r:n1-0")
    work.finish(again)
    assert work.leaks() == []


def test_one_that_came_back_goes_to_its_own_lane(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    work.submit("ship", priority="high")
    work.hand_back(work.take())
    work.retry(work.put_back(work.take()))
    work.promote()
    assert work.lengths("ship") == "h1"


def test_stale_and_replayed(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    for _ in range(3):
        work.submit("ship")
    done, lost, mine = work.fetch()
    work.finish(done)
    work.hand_back(lost)
    backs = [work.put_back(one, delay_ms=60_000) for one in (done, lost, mine)]
    assert work.retry(*backs) == [STALE, STALE, RETRIED]
    before = work.everything()
    assert work.retry(*backs) == [STALE] * 3
    assert work.everything() == before


def test_an_entry_that_another_consumer_has_under_a_new_id(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    job_id = work.submit("ship")
    one = work.take()
    work.register(task("ship", retries=2), consumer=OTHER)
    work.reap()
    theirs = work.take(consumer=OTHER)
    assert work.retry(work.put_back(one)) == [STALE]
    assert work.broker.command("EXISTS", work.keys.delayed) == 0
    assert theirs.job_id == job_id


def test_a_cancel_that_was_asked_for_is_left_to_the_holder(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    job_id = work.submit("ship")
    one = work.take()
    work.cancel(job_id)
    before = work.everything()
    assert work.retry(work.put_back(one)) == [CANCELLED]
    assert work.everything() == before


def test_many_of_many_tasks(work: Workbench) -> None:
    work.register(task("a", retries=1), task("b", retries=1))
    for name in "ab":
        for _ in range(20):
            work.submit(name)
            work.submit(name, priority="high")
    backs = [work.put_back(one) for one in work.fetch(100)]
    assert work.retry(*backs) == [RETRIED] * 80
    assert work.promote()[0] == 80
    assert (work.lengths("a"), work.lengths("b")) == ("n20 h20", "n20 h20")


def test_the_bell_rings_for_a_new_head_only(work: Workbench) -> None:
    work.register(task("ship", retries=2))
    for _ in range(2):
        work.submit("ship")
    one, two = work.fetch()
    with work.bell() as words:
        work.retry(work.put_back(one, delay_ms=10_000))
        work.retry(work.put_back(two, delay_ms=20_000))
    assert words == ["d"]


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.refuses_another_epoch(lambda epoch: worker.retry(work.keys, epoch, [work.put_back(one)]))
