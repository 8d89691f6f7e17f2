"""resign: a leader that stops leaves the leadership free; one that was succeeded leaves it alone."""

from __future__ import annotations

from tests.integration.lua_harness import Workbench, task
from upnext.engine.calls import lease


def leads(work: Workbench, daemon: str, token: str) -> tuple[bool, int]:
    beat = work.broker.run(
        lease.beat(
            work.keys, work.epoch, daemon=daemon, token=token, lease_ms=10_000, leadership_ms=6_000, consumers=[]
        )
    )
    return beat.leads, beat.term


def resign(work: Workbench, daemon: str, token: str) -> bool:
    return work.broker.run(lease.resign(work.keys, work.epoch, daemon=daemon, token=token))


def test_the_next_one_leads_at_once(work: Workbench) -> None:
    work.register(task("ship"))
    assert leads(work, "d1", "t1") == (True, 1)
    assert leads(work, "d2", "t2") == (False, 1)
    assert resign(work, "d1", "t1")
    assert leads(work, "d2", "t2") == (True, 2), "of a new term: what the old one had begun is refused"


def test_a_successor_in_the_same_daemon_keeps_it(work: Workbench) -> None:
    work.register(task("ship"))
    assert leads(work, "d1", "t1") == (True, 1)
    assert leads(work, "d1", "t2") == (True, 2)
    assert not resign(work, "d1", "t1")
    assert leads(work, "d2", "t3") == (False, 2)
