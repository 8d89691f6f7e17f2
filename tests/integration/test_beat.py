"""beat: leases renewed, the leadership held or taken, the next due time returned."""

from __future__ import annotations

from typing import Any

from tests.integration.lua_harness import CONSUMER, Workbench, task
from upnext.engine.calls import lease as lease_calls
from upnext.engine.calls.lease import Beat


def beat(
    work: Workbench,
    *consumers: str,
    daemon: str = "d1",
    token: str = "t1",
    lease_ms: int = 10_000,
    term_ms: int = 6_000,
    ended: str = "",
) -> Beat:
    return work.broker.run(
        lease_calls.beat(
            work.keys,
            work.epoch,
            daemon=daemon,
            token=token,
            lease_ms=lease_ms,
            leadership_ms=term_ms,
            consumers=consumers,
            ended_leadership=ended,
        )
    )


def lease(work: Workbench, consumer: str = CONSUMER) -> Any:
    score = work.broker.command("ZSCORE", work.keys.leases, consumer)
    return None if score is None else float(score)


def test_it_renews_the_leases_of_the_living(work: Workbench) -> None:
    work.register(task("ship"), lease_ms=1_000)
    reported = beat(work, CONSUMER, lease_ms=20_000)
    assert lease(work) == reported.server_ms + 20_000
    assert reported.missing == []


def test_a_missing_lease_is_told_and_not_made_again(work: Workbench) -> None:
    work.register(task("ship"))
    work.reap()
    assert beat(work, CONSUMER).missing == [CONSUMER]
    assert lease(work) is None


def test_it_tells_all_leases_as_they_are_after_it(work: Workbench) -> None:
    work.register(task("ship"), lease_ms=-1)
    work.broker.command("ZADD", work.keys.leases, 1_763_762_400_123, "other")
    reported = beat(work, CONSUMER)
    assert reported.leases == {"other": "1763762400123", CONSUMER: str(reported.server_ms + 10_000)}


def test_of_very_many_leases_it_tells_the_first_and_the_last(work: Workbench) -> None:
    work.register(task("ship"))
    many = {f"c{number:04}": number for number in range(1, 1_201)}
    work.broker.command("DEL", work.keys.leases)
    work.broker.command("ZADD", work.keys.leases, *(word for name, end in many.items() for word in (end, name)))
    ends = sorted(int(end) for end in beat(work).leases.values())
    assert ends == [*range(1, 501), *range(701, 1_201)]


def test_old_graves_are_told_and_those_of_a_clock_that_was_set_back(work: Workbench) -> None:
    work.register(task("ship"))
    work.broker.command("ZADD", work.keys.graves, work.now_ms() - 14_000, "fresh", work.now_ms() + 3_600_000, "ahead")
    assert beat(work).graves == ["ahead"]
    work.broker.command("ZADD", work.keys.graves, work.now_ms() - 16_000, "old")
    assert beat(work).graves == ["old"]


def test_the_first_leads_and_the_second_does_not(work: Workbench) -> None:
    work.register(task("ship"))
    first, second, again = beat(work), beat(work, daemon="d2", token="t2"), beat(work)
    assert (first.leads, first.term) == (True, 1)
    assert (second.leads, second.term) == (False, 1)
    assert (again.leads, again.term) == (True, 1)


def test_a_leadership_that_was_seen_to_end_is_taken_with_a_new_term(work: Workbench) -> None:
    work.register(task("ship"))
    beat(work, term_ms=-1)
    seen = beat(work, daemon="d2", token="t2")
    assert not seen.leads, "its end lies in the past: that may be the clock's doing"
    second = beat(work, daemon="d2", token="t2", ended=seen.leadership)
    assert (second.leads, second.term) == (True, 2)
    assert beat(work).leads is False


def test_a_leadership_that_was_renewed_after_it_was_seen_is_kept(work: Workbench) -> None:
    work.register(task("ship"))
    beat(work, term_ms=-1)
    seen = beat(work, daemon="d2", token="t2")
    beat(work, term_ms=3_600_000)
    assert not beat(work, daemon="d2", token="t2", ended=seen.leadership).leads


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
        lambda epoch: lease_calls.beat(
            work.keys, epoch, daemon="d1", token="t1", lease_ms=1, leadership_ms=1, consumers=[CONSUMER]
        )
    )
