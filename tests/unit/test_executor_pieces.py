"""The pieces of the executor by themselves: cancels that come early, timeouts, the rest of a coroutine, and how ends are recorded."""

from __future__ import annotations

import asyncio
import contextvars
import random
from typing import Any, cast

import pytest

from tests.support.fleet import task
from upnext.core import outcome as outcomes
from upnext.core.entry import Meta
from upnext.core.outcome import FailureReason, JobStatus, Outcome
from upnext.core.retry import RetryIn
from upnext.engine.attempt import Attempt
from upnext.engine.calls.worker import Finish, PutBack
from upnext.engine.cost import CpuClock, Meter
from upnext.engine.worker.continuation import Continuation
from upnext.engine.worker.deadlines import AttemptDeadlines
from upnext.engine.worker.early_cancels import EARLY_CANCEL_S, MOST_CANCELS, EarlyCancels
from upnext.engine.worker.failures import PoolCrash, RemoteError
from upnext.engine.worker.host import NoHost
from upnext.engine.worker.results import Results


async def ship() -> None: ...


def attempt(meta: Meta | None = None, **options: Any) -> Attempt:
    return Attempt(task(ship, "ship", **options), "n", b"5-0", meta, cast("Any", None))


class Named:
    """A membership."""

    consumer = "h1.w"


class Recorder(NoHost):
    """Finisher and host at once."""

    def __init__(self) -> None:
        self.ends: list[Finish] = []
        self.backs: list[PutBack] = []
        self.headlines: list[str] = []

    def finish(self, job: Finish) -> None:
        self.ends.append(job)

    def put_back(self, job: PutBack) -> None:
        self.backs.append(job)

    def failed(self, job_id: str, task: str, error: str) -> None:
        self.headlines.append(error)

    @property
    def outcome(self) -> Outcome:
        [end] = self.ends
        return outcomes.decode(end.outcome)


def recording() -> tuple[Results, Recorder]:
    recorder = Recorder()
    return Results(cast("Any", Named()), cast("Any", recorder), recorder, random.Random(0), CpuClock()), recorder


# --- early cancels


def test_a_cancel_that_came_first_counts_once() -> None:
    cancels = EarlyCancels()
    assert not cancels.waiting
    cancels.add("a", 0.0)
    assert not cancels.take("b", 1.0)
    assert cancels.take("a", 1.0)
    assert not cancels.take("a", 1.0)


def test_a_cancel_that_came_too_early_counts_no_more() -> None:
    cancels = EarlyCancels()
    cancels.add("a", 0.0)
    cancels.add("b", EARLY_CANCEL_S - 1)
    assert not cancels.take("a", EARLY_CANCEL_S + 0.5)
    assert cancels.take("b", EARLY_CANCEL_S + 0.5)
    cancels.add("c", EARLY_CANCEL_S)
    assert not cancels.take("x", 3 * EARLY_CANCEL_S)
    assert not cancels.waiting, "all are too old"


def test_early_cancels_are_bounded() -> None:
    cancels = EarlyCancels()
    for number in range(3 * MOST_CANCELS):
        cancels.add(str(number), number * EARLY_CANCEL_S / MOST_CANCELS)
    assert len(cancels.waiting) <= MOST_CANCELS + 1


# --- timeouts


async def test_each_attempt_times_out_at_its_own_time() -> None:
    timed_out: list[Attempt] = []
    both = asyncio.Event()

    def on_timeout(one: Attempt) -> None:
        timed_out.append(one)
        if len(timed_out) == 2:
            both.set()

    deadlines = AttemptDeadlines(on_timeout, contextvars.copy_context())
    late, early, stopped, endless = (attempt(timeout_s=timeout_s) for timeout_s in (0.2, 0.05, 0.1, None))
    for one in (late, early, stopped, endless):
        deadlines.start(one)
    deadlines.stop(stopped)
    deadlines.stop(endless)
    await asyncio.wait_for(both.wait(), 10)
    assert timed_out == [early, late]
    deadlines.close()


# --- continuations


async def test_a_continuation_runs_each_step_in_the_context_of_its_job() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="loop")
    seen: list[str] = []

    async def job() -> str:
        variable.set("job")
        await asyncio.sleep(0)
        seen.append(variable.get())
        return "value"

    context = contextvars.copy_context()
    coroutine = job()
    first = context.run(coroutine.send, None)
    assert await Continuation(coroutine, context, first, Meter(CpuClock())) == "value"
    assert (seen, variable.get()) == (["job"], "loop")


async def test_a_cancel_reaches_the_coroutine_of_a_continuation() -> None:
    async def job() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "heeded"
        return "never"

    context = contextvars.copy_context()
    coroutine = job()
    first = context.run(coroutine.send, None)

    async def rest() -> str:
        return await Continuation(coroutine, context, first, Meter(CpuClock()))

    waiting = asyncio.create_task(rest())
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting == "heeded"


# --- results


@pytest.mark.parametrize("meta", [None, Meta(attempt=2)])
@pytest.mark.parametrize("value", [b"null", b'{"a":1}'])
def test_a_value_is_recorded_with_its_worker(meta: Meta | None, value: bytes) -> None:
    results, recorder = recording()
    results.done(attempt(meta), 3_000_000, value)
    outcome = recorder.outcome
    assert (outcome.status, outcome.value, outcome.worker, outcome.begun_ms) == (JobStatus.DONE, value, "h1.w", 3)
    assert outcome.attempt == (2 if meta else 1)


def test_an_error_is_retried_while_there_are_attempts() -> None:
    results, recorder = recording()
    results.failed(attempt(retries=1), 0, ValueError("bad"))
    [back] = recorder.backs
    assert (back.meta.attempt, back.meta.job_id, recorder.ends) == (2, "ship:n5-0", [])
    results.failed(attempt(Meta(attempt=2), retries=1), 0, ValueError("bad"))
    assert (recorder.outcome.status, recorder.outcome.reason) == (JobStatus.FAILED, FailureReason.ERROR)
    assert recorder.ends[0].bury
    assert recorder.headlines == ["ValueError: bad"] * 2


def test_a_decision_that_hooks_have_seen_is_kept() -> None:
    results, recorder = recording()
    decided = attempt(retries=0)
    decided.verdict = RetryIn(2.5)
    results.failed(decided, 0, ValueError("bad"))
    assert recorder.backs[0].delay_ms == 2500


def test_a_cancel_is_no_failure() -> None:
    results, recorder = recording()
    cancelled = attempt()
    cancelled.cancelled = True
    results.failed(cancelled, 0, ValueError("raised because of it"))
    assert (recorder.outcome.status, recorder.outcome.reason) == (JobStatus.CANCELLED, FailureReason.CANCELLED)
    assert (recorder.headlines, recorder.ends[0].bury) == ([], False)


def test_a_timeout_is_recorded_whatever_the_job_raised() -> None:
    results, recorder = recording()
    late = attempt(timeout_s=1.0)
    late.timed_out = True
    results.failed(late, 0, asyncio.CancelledError())
    assert (recorder.outcome.reason, recorder.ends[0].bury) == (FailureReason.TIMEOUT, True)


def test_a_job_kills_its_pool_process_until_max_crashes() -> None:
    results, recorder = recording()
    results.failed(attempt(max_crashes=2), 0, PoolCrash("signal:SIGSEGV"))
    [back] = recorder.backs
    assert (back.meta.attempt, back.meta.crashes, back.meta.cause, back.delay_ms) == (1, 1, "signal:SIGSEGV", 0)
    results.failed(attempt(Meta(crashes=1), max_crashes=2), 0, PoolCrash("exit:3"))
    outcome = recorder.outcome
    assert (outcome.status, outcome.reason, outcome.cause, outcome.crashes) == (
        JobStatus.DEAD,
        FailureReason.CRASH,
        "exit:3",
        2,
    )


@pytest.mark.parametrize("delay_s", [None, 1.0])
def test_a_pool_process_decides_about_its_errors(delay_s: float | None) -> None:
    results, recorder = recording()
    results.failed(attempt(retries=5), 0, RemoteError("ValueError", "bad", "trace", delay_s))
    assert (len(recorder.ends), len(recorder.backs)) == ((1, 0) if delay_s is None else (0, 1))


def test_nothing_is_recorded_of_what_was_given_up() -> None:
    results, recorder = recording()
    given_up = attempt()
    given_up.given_up = True
    results.failed(given_up, 0, ValueError("late"))
    results.done(given_up, 0, b"1")
    assert (recorder.ends, recorder.backs, recorder.headlines) == ([], [], [])


def test_what_never_started_has_no_beginning() -> None:
    for end, reason, headlines in (
        ("expired", FailureReason.EXPIRED, 1),
        ("cancelled_before_start", FailureReason.CANCELLED, 0),
    ):
        results, recorder = recording()
        getattr(results, end)(attempt())
        assert (recorder.outcome.begun_ms, recorder.outcome.reason) == (None, reason)
        assert len(recorder.headlines) == headlines
