"""What a job sees of asyncio: a task of its own, as far as it can tell."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from upnext.core.outcome import JobStatus


@pytest.mark.parametrize("waits", [True, False], ids=["waited", "never-waited"])
@pytest.mark.parametrize("weak", [True, False], ids=["weak", "strong"])
async def test_a_task_kept_beyond_its_job_reaches_no_other(
    redis_url: str, namespace: str, waits: bool, weak: bool
) -> None:
    worker = upnext.Worker("w", concurrency=1)
    kept: list[Any] = []
    began, let_go = asyncio.Event(), asyncio.Event()

    @worker.task
    async def keeps() -> None:
        mine = asyncio.current_task()
        assert mine is not None
        kept.append(weakref.ref(mine) if weak else mine)
        if waits:
            await asyncio.sleep(0)

    @worker.task
    async def innocent() -> str:
        began.set()
        await let_go.wait()
        return "unharmed"

    async with serving(worker, redis_url, namespace):
        first, second = [await keeps.submit() for _ in range(2)]
        victim = await innocent.submit()
        await first.result(30)
        await second.result(30)
        await began.wait()
        for reference in kept:
            task = reference() if weak else reference
            if task is not None:
                task.cancel()
        await asyncio.sleep(0)
        let_go.set()
        assert await victim.value(30) == "unharmed"


async def test_a_job_that_cancels_its_own_task_harms_no_other(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)

    @worker.task
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @worker.task
    async def innocent() -> str:
        await asyncio.sleep(0)
        return "unharmed"

    async with serving(worker, redis_url, namespace):
        futures = [await task.submit() for task in (cancels_itself, innocent) * 5]
        ends = [await future.result(30) for future in futures]
        assert {end.status for end in ends} == {JobStatus.DONE}
        assert [end.value for end in ends[1::2]] == ["unharmed"] * 5


async def test_timeouts_and_task_groups_inside_a_job(redis_url: str, namespace: str) -> None:
    """Each job finds the cancel count of its task at zero, whatever the jobs before it did."""
    worker = upnext.Worker("w", concurrency=1)

    @worker.task
    async def times_out() -> list[Any]:
        task = asyncio.current_task()
        assert task is not None
        at_first = task.cancelling()
        caught: list[str] = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            caught.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
                raise ValueError
        except* ValueError:
            caught.append("group")
        task.cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            caught.append("own cancel")  # and no uncancel
        return [at_first, *caught]

    async with serving(worker, redis_url, namespace):
        for _ in range(3):
            future = await times_out.submit()
            assert await future.value(30) == [0, "timeout", "group", "own cancel"]
