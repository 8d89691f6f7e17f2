"""Checkpoints outlive a retry and a crash; progress can be seen while the job runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.outcome import FailureReason, JobStatus
from upnext.engine.calls import admin


async def test_a_checkpoint_survives_a_retry(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)

    @worker.task(retries=2, retry_delay=0.01)
    async def steps() -> list[int]:
        ctx = upnext.get_current_context()
        done: list[int] = ctx.last_checkpoint or []
        done.append(ctx.attempt)
        ctx.checkpoint(done)
        if ctx.attempt < 3:
            raise ValueError
        return done

    @worker.task(retries=1, retry_delay=0.01)
    def threaded() -> Any:
        ctx = upnext.get_current_context()
        if ctx.attempt == 1:
            ctx.set_progress(0.5, "half")
            ctx.checkpoint("here")
            raise ValueError
        return ctx.last_checkpoint

    async with serving(worker, redis_url, namespace):
        assert (await steps.wait(wait_timeout=20)).value == [1, 2, 3]
        assert (await threaded.wait(wait_timeout=20)).value == "here"


async def test_progress_is_seen_from_outside(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    go_on, from_thread = asyncio.Event(), threading.Event()

    @worker.task
    async def moves() -> None:
        ctx = upnext.get_current_context()
        for step in range(1, 1001):
            ctx.set_progress(step / 1000, f"step {step}")
        await go_on.wait()

    @worker.task
    def thread_moves() -> None:
        upnext.get_current_context().set_progress(7)
        from_thread.wait(20)

    async with serving(worker, redis_url, namespace) as running:
        future = await moves.submit()

        async def seen() -> bool:
            return await running.broker.read_notes(future.job_id) == {"progress": 1.0, "message": "step 1000"}

        await wait_until_async(seen, 10)
        second = await thread_moves.submit()

        async def thread_seen() -> bool:
            return (await running.broker.read_notes(second.job_id)).get("progress") == 7

        await wait_until_async(thread_seen, 10)
        go_on.set()
        from_thread.set()
        await future.result(60)
        await second.result(60)


async def test_notes_go_with_the_job_and_the_last_progress_stays(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def plain() -> None:
        ctx = upnext.get_current_context()
        ctx.checkpoint("x" * 10_000)
        ctx.set_progress(1, "packed")

    @worker.task
    async def waits() -> None:
        ctx = upnext.get_current_context()
        ctx.checkpoint("x" * 10_000)
        await asyncio.sleep(0)
        ctx.set_progress(1, "packed")

    @worker.task
    def threaded() -> None:
        ctx = upnext.get_current_context()
        ctx.checkpoint("x" * 10_000)
        ctx.set_progress(1, "packed")

    @worker.task
    async def fails() -> None:
        ctx = upnext.get_current_context()
        ctx.set_progress(1, "packed")
        ctx.checkpoint("newest")
        raise ValueError

    async with serving(worker, redis_url, namespace) as running:
        for task in (plain, waits, threaded):
            future = await task.submit()
            await future.result(20)
            assert await running.command("HLEN", running.keys.notes) == 0
            assert (await upnext.job(future.job_id)).progress == {"progress": 1, "message": "packed"}
        future = await fails.submit()
        with pytest.raises(upnext.TaskExecutionError):
            await future.result(20)
        kept = {"progress": 1, "message": "packed", "checkpoint": "newest"}
        assert await running.broker.read_notes(future.job_id) == kept, "with its dead letter"


async def test_the_retry_of_a_dead_letter_goes_on_from_its_checkpoint(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)

    @worker.task
    async def steps() -> str:
        ctx = upnext.get_current_context()
        if ctx.last_checkpoint is None:
            ctx.checkpoint("half")
            raise ValueError
        return ctx.last_checkpoint

    async with serving(worker, redis_url, namespace) as running:
        future = await steps.submit()
        with pytest.raises(upnext.TaskExecutionError):
            await future.result(20)
        await running.broker.run(admin.retry_dead(running.keys, [future.job_id]))
        assert (await future.result(20)).value == "half"
        assert await running.command("HLEN", running.keys.notes) == 0


SERVICE = '''
    """Jobs that take their worker with them."""
    import asyncio, os, signal, time
    import upnext

    worker = upnext.Worker("w", concurrency=2)

    @worker.task(max_crashes=4)
    async def crashes() -> list:
        ctx = upnext.get_current_context()
        if ctx.crashes < 2:
            ctx.checkpoint((ctx.last_checkpoint or 0) + 1)
            await asyncio.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return [ctx.last_checkpoint, ctx.crashes, ctx.attempt]

    @worker.task(max_crashes=2, retries=5)
    async def deadly() -> None:
        os._exit(7)
'''


def test_a_checkpoint_survives_a_crash_and_max_crashes_buries(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    worker = upnext.Worker("handles")

    @worker.task
    async def crashes() -> list[int]:
        return []

    @worker.task
    async def deadly() -> None: ...

    daemon(SERVICE, redis_url=redis_url, namespace=namespace, workers=1)
    assert crashes.wait_sync(wait_timeout=40).value == [2, 2, 1]
    with pytest.raises(upnext.TaskExecutionError) as caught:
        deadly.wait_sync(wait_timeout=40)
    end = caught.value.task_result
    assert (end.status, end.failure_reason, end.crashes, end.cause) == (
        JobStatus.DEAD,
        FailureReason.CRASH,
        2,
        "exit:7",
    )


async def test_progress_is_followed_until_the_end(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    shown = asyncio.Event()

    @worker.task
    async def packs() -> str:
        ctx = upnext.get_current_context()
        ctx.set_progress(0.5, "half")
        await shown.wait()
        ctx.set_progress(1, "packed")
        return "packed"

    async with serving(worker, redis_url, namespace):
        job = await packs.submit()
        seen: list[upnext.Progress] = []
        async for now in job.progress():
            seen.append(now)
            shown.set()
        assert seen == [upnext.Progress(0.5, "half"), upnext.Progress(1, "packed")]
        with pytest.raises(upnext.JobNotFoundError):
            await anext(packs.future("packs:n1-0").progress())


async def test_the_first_to_end_cancels_the_others_when_asked(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    forever = asyncio.Event()

    @worker.task
    async def quick() -> str:
        return "quick"

    @worker.task
    async def slow() -> str:
        await forever.wait()
        return "slow"

    async with serving(worker, redis_url, namespace):
        loser = await slow.submit()
        won = await upnext.first_completed(loser, await quick.submit(), timeout=30, cancel_losers=True)
        assert won == "quick"
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await loser.result(30)
        assert caught.value.task_result.failure_reason is FailureReason.CANCELLED
        kept = await slow.submit()
        assert await upnext.first_completed(kept, await quick.submit(), timeout=30) == "quick"
        assert await kept.status() in (JobStatus.QUEUED, JobStatus.RUNNING)
        forever.set()
        assert await kept.value(30) == "slow"
