"""promote: due jobs move into their lanes, by the server's clock, never early."""

from __future__ import annotations

import random

from tests.integration.lua_harness import Workbench, task
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import lease


def test_what_is_due_moves_and_the_rest_waits(work: Workbench) -> None:
    work.register(task("ship"))
    due = work.submit("ship", at_us=1_000_000, priority="high")
    work.submit("ship", delay_s=600.0)
    promoted, wait_us = work.promote()
    assert promoted == 1
    assert wait_us is not None
    assert 595_000_000 < wait_us <= 600_000_000
    assert work.lengths("ship") == "h1"
    [meta] = work.metas("ship", "h")
    assert meta.job_id == due
    assert list(work.hash(work.keys.where)) == [due]


def test_never_early_and_exactly_when_it_said(work: Workbench) -> None:
    """Due at moments of any microsecond: each look moves what is due by then, no more and no less, and says when the next is."""
    work.register(task("ship"))
    rng = random.Random(1)
    start_us = work.now_us()
    dues = sorted(start_us + round(rng.uniform(0, 80_000)) for _ in range(300))
    work.broker.submit_many([Submission("ship", b"{}", at_us=due) for due in dues])
    moved = 0

    def all_moved() -> bool:
        nonlocal moved
        before_us = work.now_us()
        promoted, wait_us = work.promote(len(dues))
        after_us = work.now_us()
        moved += promoted
        assert sum(due <= before_us for due in dues) <= moved <= sum(due <= after_us for due in dues)
        if moved < len(dues):
            assert wait_us is not None
            assert before_us <= dues[moved] - wait_us <= after_us
        else:
            assert wait_us is None
        return moved == len(dues)

    wait_until(all_moved, 5)


def test_nothing_to_do(work: Workbench) -> None:
    work.register(task("ship"))
    before = work.everything()
    assert work.promote() == (0, None)
    assert work.everything() == before


def test_in_order_of_their_time_and_so_many_a_run(work: Workbench) -> None:
    work.register(task("ship"))
    late, early, middle = (work.submit("ship", at_us=at) for at in (3_000, 1_000, 2_000))
    assert work.promote(2) == (2, 0)
    assert work.promote(2) == (1, None)
    assert [one.job_id for one in work.fetch()] == [early, middle, late]


def test_a_replay_moves_nothing_twice(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", delay_s=0.0)
    assert work.promote()[0] == 1
    before = work.everything()
    assert work.promote()[0] == 0
    assert work.everything() == before


def test_what_it_knew_goes_along_and_nothing_stays_behind(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit(
        "ship", delay_s=0.0, parent_id="p:n1-0", root_id="r:n1-0", idempotency_key="k", queue_ttl_s=60.0
    )
    work.promote()
    one = work.take()
    assert (one.job_id, one.meta.parent_id, one.meta.root_id) == (job_id, "p:n1-0", "r:n1-0")
    assert one.meta.idempotency_key == "ship:k"
    assert one.meta.expires_ms is not None
    assert abs(one.meta.expires_ms - work.now_ms() - 60_000) < 5_000
    work.finish(one)
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert outcome.status is JobStatus.DONE
    assert work.leaks() == []


def test_a_payload_of_any_bytes(work: Workbench) -> None:
    work.register(task("ship"))
    payload = '{"text":"12:34 ünï"}'.encode()
    work.broker.submit(Submission("ship", payload, delay_s=0.0))
    work.promote()
    assert work.lane("ship", "n")[0][1][b"p1"] == payload


def test_a_task_with_colons_in_its_name(work: Workbench) -> None:
    work.register(task("shop:orders:ship"))
    job_id = work.submit("shop:orders:ship", delay_s=0.0)
    work.promote()
    assert work.take().job_id == job_id


def test_a_place_without_a_job_is_dropped(work: Workbench) -> None:
    work.register(task("ship"))
    work.broker.command("ZADD", work.keys.delayed, 1, "ship:d1-1")
    assert work.promote() == (0, None)
    assert work.leaks() == []


def test_the_bell_rings_for_a_limited_task(work: Workbench) -> None:
    work.register(task("free"), task("tight", max_concurrency=1))
    for name in ("free", "tight", "tight"):
        work.submit(name, delay_s=0.0)
    with work.bell() as words:
        work.promote()
    assert words == ["ttight"]


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", delay_s=0.0)
    work.refuses_another_epoch(lambda epoch: lease.promote(work.keys, epoch, 10))
