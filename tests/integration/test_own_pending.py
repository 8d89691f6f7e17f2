"""own_pending: what the broker believes a consumer holds."""

from __future__ import annotations

from tests.integration.lua_harness import CONSUMER, OTHER, Workbench, task
from upnext.engine.calls import worker


def pending(work: Workbench, consumer: str = CONSUMER, most: int = 100) -> list[tuple[str, str, bytes]]:
    return work.broker.run(worker.own_pending(work.keys, work.epoch, consumer, work.names, most))


def test_of_this_consumer_over_all_tasks_and_lanes(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    work.register(task("a"), task("b"), consumer=OTHER)
    for name in "ab":
        work.submit(name)
        work.submit(name, priority="high")
    theirs = work.take(consumer=OTHER)
    mine = work.fetch()
    assert sorted(pending(work)) == sorted((one.task, one.lane, one.entry_id) for one in mine)
    assert pending(work, OTHER) == [(theirs.task, theirs.lane, theirs.entry_id)]
    work.finish(mine[0])
    assert len(pending(work)) == 2


def test_at_most_so_many(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    for name in "ab":
        for _ in range(3):
            work.submit(name)
    work.fetch()
    assert [task for task, _, _ in pending(work, most=4)] == ["a", "a", "a", "b"]


def test_nothing_held_and_nobody_known(work: Workbench) -> None:
    work.register(task("a"))
    before = work.everything()
    assert pending(work) == pending(work, "nobody") == []
    assert work.everything() == before


def test_another_epoch(work: Workbench) -> None:
    work.register(task("a"))
    work.refuses_another_epoch(lambda epoch: worker.own_pending(work.keys, epoch, CONSUMER, work.names))
