"""Cancel: wherever the job is, once or often, and against a finish."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

import upnext
from tests.support.service import Running, serving
from tests.support.waiting import wait_until_async
from upnext.core.outcome import FailureReason, JobStatus


async def cancelled(future: upnext.Future[Any]) -> upnext.TaskResult[Any]:
    with pytest.raises(upnext.TaskExecutionError) as caught:
        await future.result(60)
    end = caught.value.task_result
    assert (end.status, end.failure_reason) == (JobStatus.CANCELLED, FailureReason.CANCELLED)
    return end


async def nothing_left(running: Running, future: upnext.Future[Any]) -> None:
    keys = running.keys
    for key in (keys.cancel, keys.where, keys.delayed_jobs, keys.waiters):
        assert not await running.command("HEXISTS", key, future.job_id), key
    assert await running.command("ZSCORE", keys.dead, future.job_id) is None


async def test_delayed_and_queued(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    ran: list[int] = []

    @worker.task
    async def task(number: int) -> None:
        ran.append(number)

    elsewhere = upnext.Worker("elsewhere")

    @elsewhere.task
    async def nobody_runs_this() -> None: ...

    async with serving(worker, redis_url, namespace) as running:
        delayed = await task.options(delay=600).submit(1)
        queued = await nobody_runs_this.options(priority="high").submit()
        held_key = await task.options(delay=600).submit_idempotent("k", 2)
        for future in (delayed, queued, held_key):
            assert await future.cancel() is True
            assert await future.cancel() is False, "a second time there is nothing to cancel"
            end = await cancelled(future)
            assert end.started_at is None
            await nothing_left(running, future)
        assert (await task.submit_idempotent("k", 3)).job_id != held_key.job_id, "its key is free"
        await wait_until_async(lambda: ran == [3], 10)


async def test_held_behind_a_busy_job(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1, prefetch=3)
    let_go, ran = asyncio.Event(), list[str]()

    @worker.task
    async def task(name: str) -> None:
        ran.append(name)
        await let_go.wait()

    async with serving(worker, redis_url, namespace) as running:
        busy = await task.submit("busy")
        await wait_until_async(lambda: ran == ["busy"], 10)
        held = [await task.submit(name) for name in ("a", "b", "c")]

        async def all_held() -> bool:
            return await running.pending("task") == 4

        await wait_until_async(all_held, 10, "the worker to hold all three")
        assert await held[1].cancel()
        await cancelled(held[1])
        let_go.set()
        for future in (busy, held[0], held[2]):
            await future.result(60)
        assert ran == ["busy", "a", "c"]
        await nothing_left(running, held[1])


async def test_on_its_way_from_one_worker_to_another(redis_url: str, namespace: str) -> None:
    """Handed back because its holder is busy, and cancelled at any moment of that."""
    worker = upnext.Worker("w", concurrency=1, prefetch=2)
    let_go, ran = asyncio.Event(), list[str]()

    @worker.task
    async def task(name: str) -> None:
        ran.append(name)
        if name == "busy":
            await let_go.wait()

    async with serving(worker, redis_url, namespace) as running:
        busy = await task.submit("busy")
        await wait_until_async(lambda: ran == ["busy"], 10)
        for number in range(24):
            future = await task.submit(f"job {number}")
            since = asyncio.get_running_loop().time()
            moment = since + 0.09 + number * 0.001
            await wait_until_async(lambda moment=moment: asyncio.get_running_loop().time() >= moment, 5)
            assert await future.cancel()
            await cancelled(future)
            await nothing_left(running, future)
        let_go.set()
        await busy.result(60)
        assert ran == ["busy"]


async def test_running_async_and_thread(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    began, cleaned = asyncio.Event(), list[str]()
    in_thread, saw = threading.Event(), threading.Event()

    @worker.task(retries=5)
    async def sleeps() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            cleaned.append("async")
            raise

    @worker.task(retries=5)
    def thread() -> None:
        in_thread.set()
        ctx = upnext.get_current_context()
        while not ctx.is_cancelled:
            saw.wait(0.01)
        saw.set()

    async with serving(worker, redis_url, namespace) as running:
        first = await sleeps.submit()
        await began.wait()
        assert await first.cancel() is True
        assert await first.cancel() is True, "it still runs: asked again, nothing changes"
        end = await cancelled(first)
        assert (cleaned, end.attempts) == (["async"], 1)
        assert await first.cancel() is False
        second = await thread.submit()
        await asyncio.to_thread(in_thread.wait, 10)
        assert await second.cancel()
        await cancelled(second)
        assert await asyncio.to_thread(saw.wait, 10), "the thread sees it"
        for future in (first, second):
            await nothing_left(running, future)


async def test_a_job_between_two_attempts(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    attempts: list[int] = []

    @worker.task(retries=3, retry_delay=600)
    async def flaky() -> None:
        attempts.append(1)
        raise ValueError

    async with serving(worker, redis_url, namespace) as running:
        future = await flaky.submit()

        async def waits() -> bool:
            return await running.command("ZSCORE", running.keys.delayed, future.job_id) is not None

        await wait_until_async(waits, 10)
        assert await future.cancel()
        assert (await cancelled(future)).attempts == 2
        assert len(attempts) == 1
        await nothing_left(running, future)


async def test_a_cancel_while_an_attempt_fails_ends_the_retries(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    began, attempts = asyncio.Event(), list[int]()

    @worker.task(retries=3, retry_delay=0.01)
    async def converts() -> None:
        attempts.append(1)
        began.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise ValueError("it hides its cancel") from None

    async with serving(worker, redis_url, namespace) as running:
        future = await converts.submit()
        await began.wait()
        await future.cancel()
        await cancelled(future)
        assert len(attempts) == 1
        await nothing_left(running, future)


async def test_a_cancel_racing_a_finish_has_one_winner(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=20)
    ended: dict[str, int] = {}

    @worker.task
    async def quick(pause: float) -> None:
        await asyncio.sleep(pause)
        job = upnext.get_current_context().job_id
        ended[job] = ended.get(job, 0) + 1

    async with serving(worker, redis_url, namespace) as running:
        done = stopped = 0
        for turn in range(150):
            future = await quick.submit((turn % 10) / 2000)
            if turn % 3:
                await asyncio.sleep(0)
            asked = await future.cancel()
            try:
                await future.result(60)
            except upnext.TaskExecutionError as error:
                assert error.task_result.status is JobStatus.CANCELLED
                assert asked
                assert ended.get(future.job_id, 0) == 0, "what was cancelled has not run to its end"
                stopped += 1
            else:
                assert ended[future.job_id] == 1
                done += 1
            await nothing_left(running, future)
        assert done + stopped == 150
        assert stopped
        stats = {
            word: int(cast("bytes | None", await running.command("HGET", running.keys.stats, f"quick:{word}")) or 0)
            for word in ("done", "cancelled")
        }
        assert stats == {"done": done, "cancelled": stopped}


async def test_a_cancel_that_is_faster_than_the_fetch(redis_url: str, namespace: str) -> None:
    """The bell may ring before the reply of the fetch that took the job arrives: the job is then cancelled when it comes."""
    worker = upnext.Worker("w", concurrency=10)
    finished: list[str] = []

    @worker.task
    async def long() -> None:
        await asyncio.sleep(60)
        finished.append("ran to its end")

    async with serving(worker, redis_url, namespace):
        for _ in range(30):
            future = await long.submit()
            assert await future.cancel()
            await cancelled(future)
        assert not finished
