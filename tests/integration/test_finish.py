"""finish: the one terminal write, fenced by the entry id."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import OTHER, Taken, Workbench, task
from upnext.core import entry
from upnext.core.outcome import FailureReason, JobStatus, Outcome, encode
from upnext.core.submission import Submission
from upnext.engine.calls.worker import Finish


def end(one: Taken, *, status: JobStatus = JobStatus.DONE, value: bytes = b"1", bury: bool = False) -> Finish:
    reason = None if status is JobStatus.DONE else FailureReason.ERROR
    raw = encode(Outcome(status, value=value, reason=reason))
    return Finish(one.task, one.lane, one.entry_id, status, raw, one.meta if one.meta != entry.Meta() else None, bury)


def test_one(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    assert work.broker.run(work.finish_call(end(work.take()))) == []
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert (outcome.status, outcome.value) == (JobStatus.DONE, b"1")
    assert 0 < work.broker.command("PTTL", work.keys.result(job_id)) <= 600_000
    assert work.stats() == {"ship:done": 1}
    assert work.leaks() == []


@pytest.mark.parametrize("count", [1, 8, 9, 500, 1500])
def test_many_at_once(work: Workbench, count: int) -> None:
    work.register(task("ship"))
    work.broker.submit_many([Submission("ship", b"{}")] * count)
    taken = work.fetch(count)
    assert len(taken) == count
    assert work.broker.run(work.finish_call(*map(end, taken))) == []
    assert work.stats() == {"ship:done": count}
    assert all(work.outcome(one.job_id) for one in (taken[0], taken[-1]))
    assert work.leaks() == []


def test_tasks_lanes_and_ends_mixed(work: Workbench) -> None:
    work.register(task("a"), task("b"))
    for name in "ab":
        work.submit(name)
        work.submit(name, priority="high")
        work.submit(name, parent_id="p:n1-0", root_id="p:n1-0")
    one, two, three, four, five, six = work.fetch()
    ends = [
        end(one),
        end(two, status=JobStatus.FAILED, bury=True),
        end(three, status=JobStatus.CANCELLED),
        end(four, status=JobStatus.DEAD, bury=True),
        end(five),
        end(six, status=JobStatus.FAILED),
    ]
    assert work.broker.run(work.finish_call(*ends)) == []
    for taken, ending in zip([one, two, three, four, five, six], ends, strict=True):
        outcome = work.outcome(taken.job_id)
        assert outcome is not None
        assert outcome.status is ending.status
    assert sum(work.stats().values()) == 6
    assert sorted(work.dead_ids()) == sorted([two.job_id, four.job_id])
    assert work.leaks() == []


def test_a_replay_writes_nothing(work: Workbench) -> None:
    work.register(task("ship"))
    for _ in range(12):
        work.submit("ship")
    work.submit("ship", idempotency_key="k")
    ends = [end(one) for one in work.fetch(20)]
    assert work.broker.run(work.finish_call(*ends)) == []
    work.broker.submit(Submission("ship", b"{}", idempotency_key="k"))
    before = work.everything()
    assert len(work.broker.run(work.finish_call(*ends))) == 13
    assert work.everything() == before


def test_an_entry_that_others_own_is_left_to_them(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.submit("ship", parent_id="p:n1-0", root_id="p:n1-0")
    taken = work.fetch()
    work.register(task("ship"), consumer=OTHER)
    work.reap()
    before = work.everything()
    ends = [end(one) for one in taken]
    assert sorted(stale.entry_id for stale in work.broker.run(work.finish_call(*ends))) == [
        one.entry_id for one in taken
    ]
    assert work.everything() == before
    again = work.fetch(consumer=OTHER)
    assert {one.job_id for one in again} == {one.job_id for one in taken}
    assert work.broker.run(work.finish_call(*map(end, again))) == []
    assert work.leaks() == []


@pytest.mark.parametrize("stale", [0, 5, 19])
def test_stale_ones_amid_a_batch(work: Workbench, stale: int) -> None:
    work.register(task("ship"))
    for _ in range(20):
        work.submit("ship")
    taken = work.fetch(20)
    work.hand_back(taken[stale])
    ends = [end(one, value=b"7") for one in taken]
    assert work.broker.run(work.finish_call(*ends)) == [ends[stale]]
    assert work.stats() == {"ship:done": 19}
    assert work.outcome(taken[stale].job_id) is None
    assert work.lengths("ship") == "b1"
    assert all(work.outcome(one.job_id) for at, one in enumerate(taken) if at != stale)


def test_what_is_fetched_later_or_queued_survives_the_trim(work: Workbench) -> None:
    work.register(task("ship"))
    jobs = [work.submit("ship") for _ in range(60)]
    early, middle = work.fetch(20), work.fetch(20)
    work.broker.run(work.finish_call(*map(end, middle)))
    assert work.lengths("ship") == "n40"
    work.broker.run(work.finish_call(*map(end, early)))
    assert work.lengths("ship") == "n20"
    late = work.fetch(50)
    assert [one.job_id for one in early + middle + late] == jobs
    work.broker.run(work.finish_call(*map(end, late[1:])))
    work.broker.run(work.finish_call(end(late[0])))
    assert work.leaks() == []


def test_no_result_is_kept_with_a_ttl_of_zero(work: Workbench) -> None:
    work.register(task("ship"))
    for options in ({}, {"idempotency_key": "k"}):
        job_id = work.submit("ship", **options)
        work.broker.run(work.finish_call(end(work.take()), ttl_ms=0))
        assert work.outcome(job_id) is None
    assert work.leaks() == []


def test_who_waits_is_told(work: Workbench) -> None:
    work.register(task("ship"))
    reported = work.submit_as(Submission("ship", b"{}"), reply_to="ear")
    watched = work.submit("ship")
    assert isinstance(reported, str)
    work.broker.command("HSET", work.keys.waiters, watched, "ear other")
    ends = [end(one) for one in work.fetch()]
    with work.hearing(work.keys.reply("ear")) as heard, work.hearing(work.keys.reply("other")) as other:
        work.broker.run(work.finish_call(*ends))
    assert sorted(message.partition(b"\n")[0].decode() for message in heard) == sorted([reported, watched])
    assert [message.partition(b"\n")[0].decode() for message in other] == [watched]
    assert work.leaks() == []


def test_its_idempotency_key_is_free_again(work: Workbench) -> None:
    work.register(task("ship"))
    first = work.submit("ship", idempotency_key="k")
    work.broker.run(work.finish_call(end(work.take())))
    assert work.submit("ship", idempotency_key="k") != first
    work.broker.run(work.finish_call(end(work.take())))
    assert work.leaks() == []


def test_a_key_that_another_job_has_by_now_stays(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", idempotency_key="k", idempotency_ttl_s=0.001)
    one = work.take()
    work.broker.command("DEL", work.keys.idem("ship:k"))  # its ttl ran out
    second = work.submit("ship", idempotency_key="k")
    work.broker.run(work.finish_call(end(one)))
    assert work.broker.command("GET", work.keys.idem("ship:k")).startswith(second.encode() + b" ")


def test_a_dead_letter_keeps_payload_and_outcome(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", priority="high", parent_id="p:n1-0", root_id="r:n1-0")
    work.broker.run(work.finish_call(end(work.take(), status=JobStatus.FAILED, bury=True), ttl_ms=0))
    [packed] = [work.broker.command("HGET", work.keys.dead_jobs, job_id)]
    lane, meta, payload = entry.unpack(packed)
    assert (lane, payload, meta.parent_id, meta.root_id) == ("h", b'{"order_id":"A1"}', "p:n1-0", "r:n1-0")
    assert meta.outcome is not None
    assert meta.outcome["s"] == "failed"


def test_the_bell_rings_for_a_limited_task_only(work: Workbench) -> None:
    work.register(task("free"), task("tight", max_concurrency=1))
    work.submit("free")
    work.submit("tight")
    ends = [end(one) for one in work.fetch()]
    with work.bell() as words:
        work.broker.run(work.finish_call(*ends))
    assert words == ["ttight"]


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.refuses_another_epoch(lambda epoch: work.finish_call(end(one), epoch=epoch))


def test_an_entry_of_a_stream_that_is_gone(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.broker.command("DEL", work.keys.stream("ship", "n"))
    before = work.everything()
    assert len(work.broker.run(work.finish_call(end(one)))) == 1
    assert work.everything() == before


def test_of_dead_letters_the_newest_hundred_thousand_are_kept(work: Workbench) -> None:
    work.register(task("ship"))
    kept = [f"old:n{number}-0" for number in range(100_000)]
    for start in range(0, len(kept), 10_000):
        some = kept[start : start + 10_000]
        work.broker.command("ZADD", work.keys.dead, *(word for n, job in enumerate(some, start) for word in (n, job)))
        work.broker.command("HSET", work.keys.dead_jobs, *(word for job in some for word in (job, "packed")))
    job_id = work.submit("ship")
    assert work.broker.run(work.finish_call(end(work.take(), status=JobStatus.FAILED, bury=True))) == []
    assert work.broker.command("ZCARD", work.keys.dead) == work.broker.command("HLEN", work.keys.dead_jobs) == 100_000
    assert work.broker.command("ZSCORE", work.keys.dead, job_id) is not None
    assert work.broker.command("HEXISTS", work.keys.dead_jobs, kept[0]) == 0
    assert work.broker.command("HEXISTS", work.keys.dead_jobs, kept[1]) == 1
