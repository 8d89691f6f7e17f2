"""finish_again: jobs that had ended, and are there again because the broker went back in time, end as they had ended."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import Taken, Workbench, task
from upnext.core import entry
from upnext.core.outcome import JobStatus, Outcome, encode
from upnext.engine.calls import worker
from upnext.engine.calls.worker import Ended, Finish

OUTCOME = encode(Outcome(JobStatus.DONE, value=b"7"))


def end(one: Taken, *, bury: bool = False) -> Finish:
    meta = entry.Meta(job_id=one.job_id) if one.meta.job_id or bury else None
    status = JobStatus.FAILED if bury else JobStatus.DONE
    return Finish(one.task, one.lane, one.entry_id, status, encode(Outcome(status, value=b"7")), meta, bury)


def ends(work: Workbench, *jobs: Finish) -> list[Ended]:
    return worker.ended_in(work.finish_call(*jobs), set())


def again(work: Workbench, *jobs: Finish) -> int:
    return work.broker.run(
        worker.finish_again(work.keys, work.epoch, ends(work, *jobs), {job.task: 60_000 for job in jobs})
    )


def assert_ended(work: Workbench, job_id: str) -> None:
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert (outcome.status, outcome.value) == (JobStatus.DONE, b"7")
    assert work.lengths("ship") == ""
    assert work.pending("ship") == 0
    assert work.stats() == {"ship:done": 1}
    assert work.leaks() == []


def test_one_that_is_held_again(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    assert again(work, end(work.take())) == 1
    assert_ended(work, job_id)


def test_one_that_waits_again(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    [(entry_id, _)] = work.lane("ship", "n")
    assert again(work, Finish("ship", "n", entry_id, JobStatus.DONE, OUTCOME)) == 1
    assert_ended(work, job_id)


def test_one_that_had_moved_and_is_where_it_was_first(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    moved = Finish("ship", "b", b"99-0", JobStatus.DONE, OUTCOME, entry.Meta(job_id=job_id, lane="n"))
    assert again(work, moved) == 1
    assert_ended(work, job_id)


def test_one_that_had_moved_and_is_on_its_way(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    work.hand_back(work.take())
    moved = Finish("ship", "n", b"99-0", JobStatus.DONE, OUTCOME, entry.Meta(job_id=job_id))
    assert again(work, moved) == 1
    assert_ended(work, job_id)


def test_one_that_is_not_due_again(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", delay_s=60.0)
    promoted = Finish("ship", "n", b"99-0", JobStatus.DONE, OUTCOME, entry.Meta(job_id=job_id))
    assert again(work, promoted) == 1
    assert work.broker.command("EXISTS", work.keys.delayed, work.keys.delayed_jobs) == 0
    assert_ended(work, job_id)


def test_one_that_runs_elsewhere_again_ends_there_too_late(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    [(entry_id, _)] = work.lane("ship", "n")
    other = work.take()
    assert again(work, Finish("ship", "n", entry_id, JobStatus.DONE, OUTCOME)) == 1
    late = end(other)
    assert work.broker.run(work.finish_call(late)) == [late]
    assert work.stats() == {"ship:done": 1}


def test_one_that_is_nowhere_has_ended(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    one = work.take()
    work.broker.run(work.finish_call(end(one)))
    before = work.everything()
    assert again(work, end(one)) == 0
    assert work.everything() == before


def test_a_dead_letter_is_kept_again_and_one_that_was_retried_since_is_left_alone(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    one = work.take()
    buried = end(one, bury=True)
    assert again(work, buried) == 1
    assert work.dead_ids() == [job_id]
    work.broker.command("ZREM", work.keys.dead, job_id)
    work.broker.command("HDEL", work.keys.dead_jobs, job_id)
    new = work.add("ship", "n", "p1", b"{}", "m", entry.encode_meta(entry.Meta(job_id=job_id)))
    work.broker.command("HSET", work.keys.where, job_id, f"n {new.decode()}")
    assert again(work, buried) == 0
    assert work.lengths("ship") == "n1"


def test_what_was_another_owner_s_is_not_kept(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    work.submit("ship")
    first, second = work.take(), work.take()
    call = work.finish_call(end(first), end(second))
    assert [one.entry_id for one in worker.ended_in(call, {first.entry_id})] == [second.entry_id]


@pytest.mark.parametrize("moved", [False, True])
def test_ends_are_read_back_from_the_call_that_told_them(work: Workbench, moved: bool) -> None:
    meta = entry.Meta(job_id="ship:n5-0", idempotency_key="k") if moved else None
    jobs = [
        Finish("ship", "n", b"1-0", JobStatus.DONE, OUTCOME, meta),
        Finish("pack", "b", b"2-0", JobStatus.CANCELLED, b"{}", entry.Meta(job_id="pack:d3-1")),
        Finish("ship", "n", b"3-0", JobStatus.DONE, OUTCOME),
    ]
    found = {one.entry_id: (one.task, one.lane, one.letter, one.job_id, one.outcome) for one in ends(work, *jobs)}
    assert found == {
        b"1-0": ("ship", "n", "d", "ship:n5-0" if moved else "ship:n1-0", OUTCOME),
        b"2-0": ("pack", "b", "c", "pack:d3-1", b"{}"),
        b"3-0": ("ship", "n", "d", "ship:n3-0", OUTCOME),
    }


def test_another_epoch(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship")
    reported = ends(work, end(work.take()))
    work.refuses_another_epoch(lambda epoch: worker.finish_again(work.keys, epoch, reported, {"ship": 1}))
