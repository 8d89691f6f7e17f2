"""linger: what outlives its job keeps its permit."""

from __future__ import annotations

from tests.integration.lua_harness import CONSUMER, OTHER, Workbench, task
from upnext.engine.calls import lease


def linger(work: Workbench, count: int, name: str = "ship", consumer: str = CONSUMER) -> bool:
    return work.broker.run(lease.linger(work.keys, work.epoch, consumer, name, count))


def test_each_holds_a_permit_until_it_is_over(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=3), task("shipping", max_concurrency=1))
    for _ in range(5):
        work.submit("ship", limited=True)
    assert linger(work, 2)
    assert len(work.fetch()) == 1
    work.submit("shipping", limited=True)
    assert len(work.fetch()) == 1, "another task's permits are its own"
    with work.hearing(work.keys.bell) as words:
        assert linger(work, 1)
    assert words == [b"tship"]
    assert len(work.fetch()) == 1
    assert linger(work, 0)
    assert len(work.fetch()) == 1
    assert work.hash(work.keys.lingering) == {}


def test_a_reaped_consumer_holds_none(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=1))
    work.register(task("ship", max_concurrency=1), consumer=OTHER)
    work.submit("ship", limited=True)
    assert linger(work, 1)
    assert work.fetch(consumer=OTHER) == []
    with work.hearing(work.keys.bell) as words:
        work.reap(CONSUMER)
    assert words == [b"tship"]
    assert linger(work, 1) is False, "it has no lease"
    assert len(work.fetch(consumer=OTHER)) == 1


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.refuses_another_epoch(lambda epoch: lease.linger(work.keys, epoch, CONSUMER, "ship", 1))
