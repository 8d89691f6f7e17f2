"""cancel: a waiting job ends here; a running one is asked to."""

from __future__ import annotations

import pytest

from tests.integration.lua_harness import CONSUMER, Workbench, task
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls.client import ASKED, ENDED
from upnext.engine.calls.worker import CANCELLED
from upnext.errors import UsageError


def ended_as_cancelled(work: Workbench, job_id: str) -> bool:
    outcome = work.outcome(job_id)
    return outcome is not None and (outcome.status, outcome.reason) == (JobStatus.CANCELLED, FailureReason.CANCELLED)


@pytest.mark.parametrize("options", [{}, {"priority": "high"}, {"delay_s": 60.0}, {"idempotency_key": "k"}])
def test_a_job_that_waits_ends_here(work: Workbench, options: dict[str, object]) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", **options)
    assert work.cancel(job_id) == ENDED
    assert ended_as_cancelled(work, job_id)
    assert work.fetch() == []
    assert work.stats() == {"ship:cancelled": 1}
    assert work.leaks() == []
    assert work.cancel(job_id) == 0


def test_one_that_moved(work: Workbench) -> None:
    work.register(task("ship"))
    for options in ({}, {"delay_s": 0.0}):
        job_id = work.submit("ship", **options)
        work.promote()
        work.hand_back(work.take())
        assert work.cancel(job_id) == ENDED
        assert ended_as_cancelled(work, job_id)
    assert work.leaks() == []


def test_one_that_waits_for_its_next_attempt(work: Workbench) -> None:
    work.register(task("ship", retries=1))
    job_id = work.submit("ship")
    one = work.take()
    work.retry(work.put_back(one, delay_ms=60_000))
    assert work.cancel(job_id) == ENDED
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert outcome.attempt == 2
    assert work.leaks() == []


def test_a_running_one_is_asked_by_flag_and_bell(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship")
    one = work.take()
    with work.bell() as words:
        assert work.cancel(job_id) == ASKED
        assert work.cancel(job_id) == ASKED
    assert words == [f"c{job_id}"] * 2
    assert list(work.hash(work.keys.cancel)) == [job_id]
    work.finish(one)  # it was faster: that is its end
    outcome = work.outcome(job_id)
    assert outcome is not None
    assert outcome.status is JobStatus.DONE
    assert work.leaks() == []


def test_a_running_one_that_fails_gets_no_further_attempt(work: Workbench) -> None:
    work.register(task("ship", retries=3))
    job_id = work.submit("ship")
    one = work.take()
    work.cancel(job_id)
    assert work.retry(work.put_back(one)) == [CANCELLED]
    assert work.pending("ship") == 1


def test_a_running_one_whose_worker_dies_ends_as_cancelled(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", idempotency_key="k")
    one = work.take()
    work.cancel(job_id)
    assert work.reap(CONSUMER, one, charge="crash").moved == 0
    assert ended_as_cancelled(work, job_id)
    assert work.leaks() == []


def test_one_that_was_asked_while_it_was_handed_back_ends_as_cancelled(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", idempotency_key="k")
    one = work.take()
    work.cancel(job_id)
    work.hand_back(one)
    assert ended_as_cancelled(work, job_id)
    assert work.fetch() == []
    assert work.leaks() == []


def test_waiters_are_told(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit_as(Submission("ship", b"{}"), reply_to="ear")
    assert isinstance(job_id, str)
    with work.hearing(work.keys.reply("ear")) as heard:
        work.cancel(job_id)
    [message] = heard
    assert message.startswith(f"{job_id}\n".encode())


def test_unknown_and_ended_ones(work: Workbench) -> None:
    work.register(task("ship"))
    [dead] = work.dead("ship")
    done = work.submit("ship")
    work.finish(work.take())
    before = work.everything()
    for job_id in (dead, done, "ship:n1-0", "ship:d1-1", "nothing:n1-0"):
        assert work.cancel(job_id) == 0
    assert work.everything() == before
    with pytest.raises(UsageError):
        work.cancel("no id")
