"""Attempts: when they come again, how often, and how the last one ends."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing

import orjson
import pytest

import upnext
from tests.support.fleet import Fleet, task
from tests.support.service import serving
from tests.support.waiting import PATIENCE
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs
from upnext.errors import JobNotFoundError, Retry


async def test_attempts_come_after_their_delay_and_never_early(redis_url: str, namespace: str) -> None:
    begun: list[float] = []

    async def flaky() -> int:
        begun.append(time.time())
        if len(begun) < 3:
            raise ValueError("not yet")
        return len(begun)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(flaky, retries=2, retry_delay_s=0.2, retry_backoff=2.0))
        outcome = await fleet.run("flaky")
        assert (outcome.status, outcome.attempt, outcome.value) == (JobStatus.DONE, 3, b"3")
        first, second = begun[1] - begun[0], begun[2] - begun[1]
        assert 0.8 * 0.2 <= first < 0.24 + 0.5 * PATIENCE
        assert 0.8 * 0.4 <= second < 0.48 + 0.5 * PATIENCE
        assert await fleet.leaks() == []
        assert await fleet.stats() == {"flaky:retried": 2, "flaky:done": 1}


async def test_out_of_attempts_it_is_a_dead_letter(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ValueError("no such order")

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(broken, retries=1, retry_delay_s=0.01))
        outcome = await fleet.run("broken", of={"idempotency_key": "k"})
        assert (outcome.status, outcome.reason, outcome.attempt) == (JobStatus.FAILED, FailureReason.ERROR, 2)
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.message) == ("ValueError", "no such order")
        assert "raise ValueError" in outcome.error.traceback
        assert "executor.py" not in outcome.error.traceback
        assert await fleet.command("ZCARD", fleet.keys.dead) == 1
        assert await fleet.leaks() == []
    [line] = [record for record in caplog.records if "failed for good" in record.getMessage()]
    assert line.levelname == "ERROR"
    assert line.exc_info is not None, "what Sentry and its kin look for"
    assert isinstance(line.exc_info[1], ValueError)
    shown = logging.Formatter().format(line)
    assert (shown.count("raise ValueError"), "executor.py" in shown) == (1, False)
    assert (vars(line)["task"], vars(line)["attempt"]) == ("broken", 2)
    assert vars(line)["job_id"].startswith("broken:")


async def test_a_job_may_choose_its_own_delay(redis_url: str, namespace: str) -> None:
    begun: list[float] = []

    async def polite() -> None:
        begun.append(time.time())
        if len(begun) == 1:
            raise Retry(delay=0.15)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(polite, retries=1, retry_delay_s=30.0))
        assert (await fleet.run("polite")).status is JobStatus.DONE
        assert 0.15 <= begun[1] - begun[0] < 1.0 * PATIENCE


async def test_arguments_that_do_not_fit_are_not_retried(redis_url: str, namespace: str) -> None:
    async def ship(order_id: str) -> None: ...

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship, retries=5, retry_delay_s=60.0))
        outcome = await fleet.run("ship", nonsense=1)
        assert outcome.status is JobStatus.FAILED
        assert outcome.error is not None
        assert "order_id" in outcome.error.message


async def test_a_value_that_cannot_be_stored_fails_that_job_alone(redis_url: str, namespace: str) -> None:
    async def give(good: bool) -> object:
        return 1 if good else object()

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(give, retries=5, retry_delay_s=60.0), concurrency=4)
        outcomes = await asyncio.gather(*(fleet.run("give", good=number != 2) for number in range(5)))
        assert [outcome.status.value for outcome in outcomes] == ["done", "done", "failed", "done", "done"]
        assert outcomes[2].error is not None
        assert "object" in outcomes[2].error.message


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_a_task_cannot_end_its_worker(redis_url: str, namespace: str, error: type[BaseException]) -> None:
    async def rude(wait: bool) -> None:
        if wait:
            await asyncio.sleep(0.001)
        raise error

    async def polite() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(rude), task(polite), concurrency=1)
        for wait in (True, False):
            outcome = await fleet.run("rude", wait=wait)
            assert (outcome.status, outcome.reason) == (JobStatus.FAILED, FailureReason.ERROR)
        assert (await fleet.run("polite")).value == b"1"


async def test_a_delayed_job_starts_when_it_is_due(redis_url: str, namespace: str) -> None:
    async def when() -> float:
        return time.time()

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(when))
        submitted = time.time()
        later, sooner = await asyncio.gather(
            fleet.run("when", of={"delay_s": 0.6}),
            fleet.run("when", of={"at_us": round((submitted + 0.25) * 1_000_000)}),
        )
        assert 0.6 <= orjson.loads(later.value) - submitted < 0.6 + 0.5 * PATIENCE
        assert 0.249_999 <= orjson.loads(sooner.value) - submitted < 0.25 + 0.5 * PATIENCE
        assert await fleet.leaks() == []


async def test_a_delayed_job_comes_though_no_scheduler_was_there_when_it_was_due(
    redis_url: str, namespace: str
) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship))
        job_id = await fleet.submit("ship", of={"delay_s": 0.0})
        await fleet.scheduler()
        assert await fleet.value(job_id) == 1


async def test_two_schedulers_promote_each_job_once(redis_url: str, namespace: str) -> None:
    ran: list[int] = []

    async def ship(number: int) -> None:
        ran.append(number)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), concurrency=10)
        await fleet.scheduler("d1")
        await fleet.scheduler("d2")
        many = [Submission("ship", b'{"number":%d}' % number, delay_s=number % 10 / 50) for number in range(300)]
        await fleet.broker.submit_many(many)
        await fleet.until(lambda: len(ran) >= 300)
        assert sorted(ran) == list(range(300))
        assert await fleet.leaks() == []


async def test_a_job_that_waited_too_long_expires(redis_url: str, namespace: str) -> None:
    ran: list[int] = []

    async def ship() -> None:
        ran.append(1)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        life.runtime.pause()
        await life.runtime._fetcher.quiet()
        stale = await fleet.submit("ship", of={"queue_ttl_s": 0.05, "idempotency_key": "k"})
        fresh = await fleet.submit("ship", of={"queue_ttl_s": 60.0})
        expired_at = time.time() + 0.06
        await fleet.until(lambda: time.time() > expired_at)
        life.runtime.resume()
        outcome = await fleet.broker.wait(stale, 30)
        assert (outcome.status, outcome.reason, outcome.cause) == (JobStatus.FAILED, FailureReason.EXPIRED, "expired")
        assert outcome.begun_ms is None, "it never started"
        assert (await fleet.broker.wait(fresh, 30)).status is JobStatus.DONE
        assert ran == [1]
        assert await fleet.leaks() == []


async def test_a_job_that_has_started_expires_no_more(redis_url: str, namespace: str) -> None:
    """queue_ttl bounds the wait for the first start: an attempt after that may begin as late as it likes."""
    attempts: list[int] = []

    async def ship() -> int:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ValueError("again")
        return len(attempts)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1")
        await fleet.worker(task(ship, retries=2, retry_delay_s=0.3))
        outcome = await fleet.run("ship", of={"queue_ttl_s": 0.25})
        assert (outcome.status, outcome.value, outcome.attempt) == (JobStatus.DONE, b"3", 3)
        assert await fleet.leaks() == []


async def test_what_expired_can_be_found_and_is_no_dead_letter(redis_url: str, namespace: str) -> None:
    async def ship() -> None: ...

    async with Fleet(redis_url, namespace) as fleet:
        stale = await fleet.submit("ship", of={"queue_ttl_s": 0.05})
        late_at = time.monotonic() + 0.5
        await fleet.until(lambda: time.monotonic() > late_at)
        await fleet.worker(task(ship))
        await fleet.broker.wait(stale, 30)

        def look() -> tuple[jobs.Job, list[jobs.Job], list[jobs.Job]]:
            with closing(SyncQueueClient(redis_url, namespace)) as broker:
                failed = jobs.jobs(broker, broker.keys, JobStatus.FAILED)
                return jobs.job(broker, broker.keys, stale), failed, jobs.dead_letters(broker, broker.keys)

        one, failed, dead = await asyncio.to_thread(look)
        assert (one.status, one.reason, one.started_ms) == (JobStatus.FAILED, FailureReason.EXPIRED, None)
        assert [(found.job_id, found.cause) for found in failed] == [(stale, "expired")]
        assert dead == []


async def test_without_a_result_ttl_only_who_waits_hears_of_the_end(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 4

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship, result_ttl_s=0.0))
        assert (await fleet.run("ship")).value == b"4"
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: len(fleet.workers[0].board.starts) == 2 and not fleet.workers[0].board.cells)
        await fleet.until(lambda: not fleet.workers[0].runtime._finisher.unconfirmed)
        with pytest.raises(JobNotFoundError):
            await fleet.broker.wait(job_id, 30)
        assert await fleet.leaks() == []


async def test_a_thousand_retries_at_once(redis_url: str, namespace: str) -> None:
    seen: dict[int, int] = {}

    async def flaky(number: int) -> None:
        seen[number] = seen.get(number, 0) + 1
        if seen[number] == 1:
            raise ValueError("again")

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(flaky, retries=1, retry_delay_s=0.1), concurrency=20)
        await fleet.broker.submit_many([Submission("flaky", b'{"number":%d}' % number) for number in range(1000)])

        async def done() -> bool:
            return (await fleet.stats()).get("flaky:done") == 1000

        await fleet.until(done)
        assert set(seen.values()) == {2}
        assert await fleet.leaks() == []


async def test_the_record_of_a_last_failure_can_be_written_whatever_the_error_says(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def says(text: str, times: int) -> None:
        raise ValueError((chr(0xD800) if text == "lone" else text) * times)

    async with serving(worker, redis_url, namespace):
        for text, times in (("lone", 1), ("long", 100_000), ("plain", 1)):
            with pytest.raises(upnext.TaskExecutionError):
                await says.wait(text, times, wait_timeout=30)
    lone, long, plain = [record for record in caplog.records if "for good" in record.getMessage()]
    assert plain.exc_info is not None
    for record in (lone, long):
        assert record.exc_info is None
        assert len(record.getMessage().encode()) < 64 * 1024
