"""A key is held from the submit to the job's end, and is free from then on, however the job ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.fleet import Fleet, task
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import dead_letters, tasks


class Stage:
    """One task `ship` that does what its argument says."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.running = asyncio.Event()
        self.go = asyncio.Event()
        self.tries = 0

    async def ship(self, how: str = "done") -> str:
        self.tries += 1
        self.running.set()
        if how == "wait":
            await self.go.wait()
        if how == "fail" or (how == "again" and self.tries == 1):
            raise ConnectionError("no")
        return how

    async def work(self) -> None:
        await self.fleet.worker(task(self.ship, "ship", retries=1, retry_delay_s=0.05, max_crashes=1))

    async def submit(self, how: str = "done", **options: object) -> str:
        return await self.fleet.broker.submit(
            Submission("ship", b'{"how":"%s"}' % how.encode(), idempotency_key="k", **options)  # type: ignore[arg-type]
        )

    async def held_by(self) -> str | None:
        raw = await self.fleet.command("GET", self.fleet.keys.idem("ship:k"))
        return raw.decode().split()[0] if raw else None


async def ends_well(stage: Stage) -> str:
    await stage.work()
    job_id = await stage.submit("wait")
    await stage.running.wait()
    assert await stage.held_by() == job_id
    stage.go.set()
    return job_id


async def fails_for_good(stage: Stage) -> str:
    await stage.fleet.scheduler()
    await stage.work()
    return await stage.submit("fail")


async def succeeds_at_the_second_attempt(stage: Stage) -> str:
    """Between attempts, in the delayed set, the key is held."""
    await stage.work()
    job_id = await stage.submit("again")
    await stage.fleet.until(lambda: stage.fleet.command("ZCARD", stage.fleet.keys.delayed))
    assert await stage.held_by() == job_id
    await stage.fleet.scheduler()
    return job_id


async def cancelled_in_the_queue(stage: Stage) -> str:
    job_id = await stage.submit()
    assert await stage.fleet.broker.cancel(job_id)
    return job_id


async def cancelled_before_it_is_due(stage: Stage) -> str:
    job_id = await stage.submit(delay_s=3600)
    assert await stage.held_by() == job_id
    assert await stage.fleet.broker.cancel(job_id)
    return job_id


async def cancelled_while_it_runs(stage: Stage) -> str:
    await stage.work()
    job_id = await stage.submit("wait")
    await stage.running.wait()
    assert await stage.fleet.broker.cancel(job_id)
    return job_id


async def expires(stage: Stage) -> str:
    job_id = await stage.submit(queue_ttl_s=0.001)
    await stage.fleet.until(lambda: asyncio.sleep(0.01, True))
    await stage.work()
    return job_id


async def purged(stage: Stage, delay_s: float | None = None) -> str:
    await stage.fleet.worker(task(stage.ship, "other"))
    job_id = await stage.submit(delay_s=delay_s)

    def purge() -> None:
        broker = SyncQueueClient(stage.fleet.url, stage.fleet.namespace)
        tasks.purge(broker, stage.fleet.keys, "ship")
        broker.close()

    await asyncio.to_thread(purge)
    return job_id


async def purged_from_the_queue(stage: Stage) -> str:
    return await purged(stage)


async def purged_before_it_is_due(stage: Stage) -> str:
    return await purged(stage, delay_s=3600)


async def buried_after_a_crash(stage: Stage) -> str:
    await stage.fleet.scheduler()
    life = await stage.fleet.worker(task(stage.ship, "ship", max_crashes=1))
    job_id = await stage.submit("wait")
    await stage.running.wait()
    stage.fleet.report_dead(await life.die())
    return job_id


async def runs_elsewhere_after_a_crash(stage: Stage) -> str:
    """Between the workers the key is held."""
    await stage.fleet.scheduler()
    life = await stage.fleet.worker(task(stage.ship, "ship", max_crashes=3))
    job_id = await stage.submit("wait")
    await stage.running.wait()
    stage.fleet.report_dead(await life.die())
    await stage.fleet.until(lambda: stage.fleet.command("XLEN", stage.fleet.keys.stream("ship", "b")))
    assert await stage.held_by() == job_id
    stage.go.set()
    await stage.fleet.worker(task(stage.ship, "ship", max_crashes=3))
    return job_id


ENDS: dict[Callable[[Stage], Awaitable[str]], JobStatus] = {
    ends_well: JobStatus.DONE,
    fails_for_good: JobStatus.FAILED,
    succeeds_at_the_second_attempt: JobStatus.DONE,
    cancelled_in_the_queue: JobStatus.CANCELLED,
    cancelled_before_it_is_due: JobStatus.CANCELLED,
    cancelled_while_it_runs: JobStatus.CANCELLED,
    expires: JobStatus.FAILED,
    purged_from_the_queue: JobStatus.CANCELLED,
    purged_before_it_is_due: JobStatus.CANCELLED,
    buried_after_a_crash: JobStatus.DEAD,
    runs_elsewhere_after_a_crash: JobStatus.DONE,
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_the_key_is_free_at_the_jobs_end_and_not_before(
    redis_url: str, namespace: str, end: Callable[[Stage], Awaitable[str]]
) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        stage = Stage(fleet)
        job_id = await end(stage)

        async def over() -> bool:
            standing = await fleet.standing(job_id)
            return standing.outcome is not None or not standing.known

        async def ended() -> bool:
            """One script ends the job and frees its key: neither is ever seen without the other."""
            if await over():
                assert await stage.held_by() is None
                return True
            if await stage.held_by() is None:
                assert await over()
            return False

        # a purged job keeps no result: nobody knows it any more, and its key is as free
        await fleet.until(ended)
        assert await stage.held_by() is None
        standing = await fleet.standing(job_id)
        if standing.outcome is not None:
            assert standing.outcome.status is ENDS[end]
        again = await stage.submit(delay_s=60)
        assert again != job_id
        assert await stage.held_by() == again
        assert await fleet.broker.cancel(again)


async def test_a_dead_letter_that_is_retried_holds_no_key(redis_url: str, namespace: str) -> None:
    """Its key may be another's by then."""
    async with Fleet(redis_url, namespace) as fleet:
        stage = Stage(fleet)
        await fleet.scheduler()
        await stage.work()
        first = await stage.submit("fail")
        await fleet.until(lambda: fleet.command("ZCARD", fleet.keys.dead))
        second = await stage.submit(delay_s=60)

        def retry() -> None:
            broker = SyncQueueClient(redis_url, namespace)
            dead_letters.retry(broker, fleet.keys, [first])
            broker.close()

        await asyncio.to_thread(retry)
        await fleet.until(lambda: fleet.command("ZCARD", fleet.keys.dead))
        assert await stage.held_by() == second
        assert await fleet.broker.cancel(second)
