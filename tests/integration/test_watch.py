"""watch: how a job stands, and a place among the waiters that its end wakes, in one step."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import Workbench, task
from upnext.core.outcome import JobStatus
from upnext.engine.calls import client
from upnext.engine.calls.client import Standing
from upnext.errors import UsageError


def watch(work: Workbench, job_id: str, channel: str = "ear") -> Standing:
    return work.broker.run(client.watch(work.keys, job_id, channel))


def waiters(work: Workbench) -> dict[str, str]:
    return work.hash(work.keys.waiters)


@pytest.mark.parametrize("options", [{}, {"priority": "high"}, {"delay_s": 60.0}])
def test_a_living_job_is_registered_for(work: Workbench, options: dict[str, object]) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", **options)
    assert watch(work, job_id) == Standing(True)
    assert waiters(work) == {job_id: "ear#0"}


def test_wherever_it_went(work: Workbench) -> None:
    work.register(task("ship", retries=1))
    job_id = work.submit("ship")
    one = work.take()
    assert watch(work, job_id).known
    work.hand_back(one)
    assert watch(work, job_id).known
    work.retry(work.put_back(work.take(), delay_ms=0))
    assert watch(work, job_id).known
    work.promote()
    assert watch(work, job_id).known
    assert waiters(work) == {job_id: "ear#0"}
    work.finish(work.take())
    assert work.leaks() == []


def test_several_may_wait_and_each_is_told_once(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    for channel in ("a", "b", "a", "ab"):
        watch(work, job_id, channel)
    assert waiters(work) == {job_id: "b#0 a#0 ab#0"}
    with work.hearing(work.keys.reply("a")) as first, work.hearing(work.keys.reply("ab")) as second:
        work.finish(work.take())
    assert (len(first), len(second)) == (1, 1)
    assert work.leaks() == []


def test_an_ended_job_needs_no_waiting(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    work.finish(work.take(), b"7")
    before = work.everything()
    standing = watch(work, job_id)
    assert standing.outcome is not None
    assert (standing.outcome.status, standing.outcome.value) == (JobStatus.DONE, b"7")
    assert work.everything() == before


def test_a_dead_letter_tells_its_end_without_a_result(work: Workbench) -> None:
    work.register(task("ship"))
    [job_id] = work.dead("ship")
    work.broker.command("DEL", work.keys.result(job_id))
    standing = watch(work, job_id)
    assert standing.outcome is not None
    assert standing.outcome.status is JobStatus.FAILED
    assert waiters(work) == {}


def test_an_unknown_job_is_not_waited_for(work: Workbench) -> None:
    work.register(task("ship"))
    before = work.everything()
    for job_id in ("ship:n1-0", "ship:d1-1", "unheard-of:h1-0"):
        assert watch(work, job_id) == Standing(False)
    assert work.everything() == before


def test_only_asking(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    assert watch(work, job_id, "") == Standing(True)
    assert waiters(work) == {}


def test_text_that_is_no_id(work: Workbench) -> None:
    with pytest.raises(UsageError):
        watch(work, "ship")
