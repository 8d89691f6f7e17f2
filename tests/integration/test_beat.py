"""beat: leases renewed, the leadership held or taken, what is due told."""

from __future__ import annotations

from typing import Any

from tests.integration.workbench import CONSUMER, Workbench, task
from upnext.engine.calls import keeping
from upnext.engine.calls.keeping import Beat


def beat(
    work: Workbench,
    *consumers: str,
    daemon: str = "d1",
    token: str = "t1",
    lease_ms: int = 10_000,
    term_ms: int = 6_000,
) -> Beat:
    return work.broker.run(
        keeping.beat(
            work.keys,
            work.epoch,
            daemon=daemon,
            token=token,
            lease_ms=lease_ms,
            leadership_ms=term_ms,
            consumers=consumers,
        )
    )


def lease(work: Workbench, consumer: str = CONSUMER) -> Any:
    score = work.broker.command("ZSCORE", work.keys.leases, consumer)
    return None if score is None else float(score)


def test_it_renews_the_leases_of_the_living(work: Workbench) -> None:
    work.register(task("ship"), lease_ms=1_000)
    told = beat(work, CONSUMER, lease_ms=20_000)
    assert lease(work) == told.server_ms + 20_000
    assert told.missing == []


def test_a_missing_lease_is_told_and_not_made_again(work: Workbench) -> None:
    work.register(task("ship"))
    work.reap()
    assert beat(work, CONSUMER).missing == [CONSUMER]
    assert lease(work) is None


def test_ended_leases_and_old_graves_are_told_once_each(work: Workbench) -> None:
    work.register(task("ship"), lease_ms=-1)
    assert beat(work).ended == [CONSUMER]
    work.broker.command("ZADD", work.keys.graves, work.now_ms() - 14_000, "fresh", work.now_ms() - 16_000, "old")
    work.broker.command("ZADD", work.keys.graves, work.now_ms() - 16_000, CONSUMER)
    assert sorted(beat(work).ended) == [CONSUMER, "old"]


def test_the_first_leads_and_the_second_does_not(work: Workbench) -> None:
    work.register(task("ship"))
    first, second, again = beat(work), beat(work, daemon="d2", token="t2"), beat(work)
    assert (first.leads, first.term) == (True, 1)
    assert (second.leads, second.term) == (False, 1)
    assert (again.leads, again.term) == (True, 1)


def test_a_leadership_that_ended_is_taken_with_a_new_term(work: Workbench) -> None:
    work.register(task("ship"))
    beat(work, term_ms=-1)
    second = beat(work, daemon="d2", token="t2")
    assert (second.leads, second.term) == (True, 2)
    assert beat(work).leads is False


def test_a_successor_within_the_daemon_takes_over_at_once(work: Workbench) -> None:
    work.register(task("ship"))
    beat(work)
    successor = beat(work, token="t2")
    assert (successor.leads, successor.term) == (True, 2)


def test_it_tells_the_head_of_the_delayed_set(work: Workbench) -> None:
    work.register(task("ship"))
    assert beat(work).next_due_ms is None
    work.submit("ship", at_us=4_000_000_000_000_000)
    work.submit("ship", at_us=2_999_999_999_999_001)
    assert beat(work).next_due_ms == 3_000_000_000_000


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.refuses_another_epoch(
        lambda epoch: keeping.beat(
            work.keys, epoch, daemon="d1", token="t1", lease_ms=1, leadership_ms=1, consumers=[CONSUMER]
        )
    )
