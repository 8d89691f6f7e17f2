"""Cancel and timeout: they end the job they are meant for, and never reach another one."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from tests.support.fleet import Fleet, Life, task
from upnext.core.outcome import FailureReason, JobStatus
from upnext.engine.attempt import CURRENT
from upnext.engine.worker import executor


async def running(fleet: Fleet, life: Life, *job_ids: str) -> None:
    await fleet.until(lambda: sorted(life.runtime.running_ids) == sorted(job_ids))


async def test_a_running_job_is_cancelled(redis_url: str, namespace: str) -> None:
    cleaned_up: list[bool] = []

    async def ship() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned_up.append(CURRENT.get().cancelled)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship, retries=3))
        job_id = await fleet.submit("ship", of={"idempotency_key": "k"})
        await running(fleet, life, job_id)
        assert await fleet.broker.cancel(job_id)
        outcome = await fleet.broker.wait(job_id, 30)
        assert (outcome.status, outcome.reason) == (JobStatus.CANCELLED, FailureReason.CANCELLED)
        assert cleaned_up == [True]
        assert await fleet.broker.cancel(job_id) is False
        assert await fleet.leaks() == []


async def test_a_cancel_never_reaches_the_next_job_of_the_runner(redis_url: str, namespace: str) -> None:
    """Jobs that end at the very moment of their cancel, that swallow it, or that clean up for a while."""
    began: list[str] = []

    async def victim(how: str) -> None:
        began.append(how)
        try:
            await asyncio.sleep(0.01 if how == "ends" else 60)
        except asyncio.CancelledError:
            if how == "swallows":
                return
            if how == "cleans up":
                await asyncio.sleep(0.01)
            if how == "fails":
                raise ValueError("while it was cancelled") from None
            raise

    async def bystander() -> int:
        for _ in range(5):
            await asyncio.sleep(0.001)
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(victim), task(bystander), concurrency=1, prefetch=5)
        for how in ["ends", "swallows", "cleans up", "fails", "is cancelled"] * 4:
            begun = len(began)
            job_id = await fleet.submit("victim", how=how)
            others = [await fleet.submit("bystander") for _ in range(2)]
            await fleet.until(lambda begun=begun: len(began) > begun)
            life.runtime._unstarted.cancel(job_id)
            life.runtime._unstarted.cancel(job_id)
            for other in others:
                assert await fleet.value(other, 3) == 1
            await fleet.broker.wait(job_id, 30)
        assert await fleet.leaks() == []


async def test_of_a_cancel_and_an_end_one_wins(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        await asyncio.sleep(0.005)
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), concurrency=20)
        jobs = [await fleet.submit("ship") for _ in range(60)]
        await asyncio.gather(*(fleet.broker.cancel(job_id) for job_id in jobs))
        outcomes = [await fleet.broker.wait(job_id, 30) for job_id in jobs]
        assert {outcome.status for outcome in outcomes} <= {JobStatus.DONE, JobStatus.CANCELLED}
        stats = await fleet.stats()
        assert stats.get("ship:done", 0) + stats.get("ship:cancelled", 0) == 60
        assert await fleet.leaks() == []


async def test_a_job_that_is_fetched_but_not_started_is_cancelled(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()
    ran: list[int] = []

    async def ship(number: int) -> None:
        ran.append(number)
        await release.wait()

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), concurrency=1, prefetch=3)
        first = await fleet.submit("ship", number=0)
        await running(fleet, life, first)
        second = await fleet.submit("ship", number=1)
        assert await fleet.broker.cancel(second)
        assert (await fleet.broker.wait(second, 30)).status is JobStatus.CANCELLED
        release.set()
        await fleet.broker.wait(first, 30)
        assert ran == [0]
        assert await fleet.leaks() == []


async def test_a_cancel_that_the_bell_did_not_bring_is_reread(redis_url: str, namespace: str) -> None:
    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        job_id = await fleet.submit("ship")
        await running(fleet, life, job_id)
        await fleet.command("HSET", fleet.keys.cancel, job_id, 1)
        ear = life.runtime._listener._link.live
        assert ear is not None
        await fleet.command("CLIENT", "KILL", "ID", ear.client_id)
        assert (await fleet.broker.wait(job_id, 30)).status is JobStatus.CANCELLED
        assert await fleet.leaks() == []


async def test_timeouts_of_async_jobs(redis_url: str, namespace: str) -> None:
    async def ship(wait_s: float) -> str:
        await asyncio.sleep(wait_s)
        return "in time"

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship, timeout_s=1.5), concurrency=10)
        outcomes = await asyncio.gather(*(fleet.run("ship", wait_s=60.0 if n % 2 else 0.01) for n in range(10)))
        for number, outcome in enumerate(outcomes):
            if number % 2:
                assert (outcome.status, outcome.reason) == (JobStatus.FAILED, FailureReason.TIMEOUT)
                assert outcome.error is not None
                assert "1.5 s" in outcome.error.message
            else:
                assert outcome.status is JobStatus.DONE
        assert await fleet.leaks() == []


async def test_a_timeout_is_a_failed_attempt(redis_url: str, namespace: str) -> None:
    begun: list[float] = []

    async def ship() -> int:
        begun.append(time.time())
        if len(begun) == 1:
            await asyncio.sleep(60)
        return len(begun)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(ship, timeout_s=0.1, retries=1, retry_delay_s=0.01))
        outcome = await fleet.run("ship")
        assert (outcome.status, outcome.attempt) == (JobStatus.DONE, 2)


async def test_a_timeout_of_the_job_s_own_is_the_job_s_own(redis_url: str, namespace: str) -> None:
    async def ship() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "caught"
        return "?"

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), concurrency=1)
        for _ in range(3):
            assert (await fleet.run("ship")).value == b'"caught"'


async def test_a_thread_past_its_timeout_ends_its_job_and_is_reported(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upnext.engine.worker import middleware

    monkeypatch.setattr(executor, "GRACE_S", 0.1)
    monkeypatch.setattr(middleware, "GRACE_S", 0.1)
    release = threading.Event()

    def ship() -> None:
        release.wait(10)

    def quick() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship, timeout_s=0.1), task(quick), concurrency=1)
        job_id = await fleet.submit("ship")
        outcome = await fleet.broker.wait(job_id, 30)
        assert outcome.reason is FailureReason.TIMEOUT
        await fleet.until(lambda: life.board.stuck_jobs == [(job_id, "timeout")])
        release.set()
        assert (await fleet.run("quick")).value == b"1"
        assert await fleet.leaks() == []


async def test_contexts_are_each_job_s_own(redis_url: str, namespace: str) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")

    async def ship(name: str) -> list[str]:
        seen = [tenant.get()]
        tenant.set(name)
        await asyncio.sleep(0.002)
        seen.append(tenant.get())
        child = asyncio.create_task(asyncio.sleep(0, tenant.get()))
        seen.append(await child)
        return [*seen, CURRENT.get().job_id]

    def plain(name: str) -> list[str]:
        seen = [tenant.get()]
        tenant.set(name)
        return [*seen, tenant.get(), CURRENT.get().job_id]

    def immediate(name: str) -> str:
        return name

    async def at_once(name: str) -> list[str]:
        seen = [tenant.get()]
        tenant.set(name)
        return [*seen, tenant.get(), CURRENT.get().job_id]

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), task(plain), task(at_once), task(immediate), concurrency=3)
        for name in ("ship", "plain", "at_once"):
            jobs = [await fleet.submit(name, name=f"t{number}") for number in range(12)]
            for number, job_id in enumerate(jobs):
                first, *rest, reported = await fleet.value(job_id)
                assert first == "nobody"
                assert set(rest) == {f"t{number}"}
                assert reported == job_id
    assert tenant.get() == "nobody"
    assert CURRENT.get(None) is None
