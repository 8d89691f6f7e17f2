"""A job's state from Python, without waiting for it."""

from __future__ import annotations

import asyncio

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.errors import JobNotFoundError, UsageError


async def test_a_job_is_followed_from_the_queue_to_its_end(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    begun, go = asyncio.Event(), asyncio.Event()

    @worker.task(retries=2)
    async def slow(number: int) -> int:
        begun.set()
        await go.wait()
        if number < 0:
            raise upnext.UpNextError("below zero")
        return number

    async with serving(worker, redis_url, namespace):
        later = await slow.options(delay=600).submit(5)
        future = await slow.submit(3)
        await asyncio.wait_for(begun.wait(), 20)
        assert await future.status() is upnext.JobStatus.RUNNING
        assert await later.status() is upnext.JobStatus.DELAYED
        waiting = await upnext.job(later.job_id)
        assert (waiting.task, waiting.attempt, waiting.max_attempts, waiting.finished_at) == ("slow", 1, 3, None)
        assert waiting.due_at is not None
        assert waiting.submitted_at is not None
        assert 599 < (waiting.due_at - waiting.submitted_at).total_seconds() < 601
        go.set()
        await future.result(20)
        assert await asyncio.to_thread(future.status_sync) is upnext.JobStatus.DONE
        ended = await asyncio.to_thread(upnext.job_sync, future.job_id)
        assert (ended.value, ended.error) == (3, None)
        assert ended.started_at is not None

        async def listed() -> list[str]:
            return [one.job_id for one in await upnext.jobs(state="done", task="slow")]

        await wait_until_async(lambda: upnext.jobs_sync(state="done"), 20)
        assert await listed() == [future.job_id]
        assert [one.job_id for one in await upnext.jobs(state="delayed", task="slow", limit=5)] == [later.job_id]
        assert await upnext.jobs(task="other") == []


async def test_what_is_not_known_or_no_state(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    async with serving(worker, redis_url, namespace):
        with pytest.raises(JobNotFoundError):
            await upnext.Future("slow:n1-1").status()
        with pytest.raises(UsageError, match="state must be one of queued"):
            await upnext.jobs(state="asleep")
        with pytest.raises(UsageError, match="limit"):
            await upnext.jobs(limit=0)
