"""What a job cost stands in its outcome: of one that waits, blocks, works, runs in a thread, fails; not of a short one."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import upnext
from tests.support.service import serving
from upnext.core.outcome import Cost
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs

WORK_S = 0.1


def work() -> None:
    until_s = time.thread_time() + WORK_S
    while time.thread_time() < until_s:
        pass


async def test_what_jobs_cost(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def works() -> None:
        work()

    @worker.task
    async def blocks() -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.3)  # noqa: ASYNC251 - what is to be found

    @worker.task
    async def waits() -> None:
        await asyncio.sleep(0.3)

    @worker.task
    def in_thread() -> None:
        work()

    @worker.task(retries=0)
    async def fails() -> None:
        await asyncio.sleep(0.01)
        work()
        raise ValueError

    @worker.task
    async def short() -> None: ...

    client = SyncQueueClient(redis_url, namespace)

    async def cost(task: upnext.Task[[], None]) -> Cost | None:
        future = await task.submit()
        with suppress(upnext.TaskExecutionError):
            await future.result(20)
        return jobs.job(client, client.keys, future.job_id).cost

    async with serving(worker, redis_url, namespace):
        for task in (works, fails):
            found = await cost(task)
            assert found is not None
            assert WORK_S * 0.8 < found.cpu_s < WORK_S * 1.5
            assert found.longest_step_s >= WORK_S * 0.9
        blocked, waited, threaded = await cost(blocks), await cost(waits), await cost(in_thread)
        assert blocked is not None
        assert blocked.cpu_s < 0.1
        assert blocked.longest_step_s > 0.29
        assert waited is not None
        assert waited.cpu_s < 0.1
        assert waited.longest_step_s < 0.15
        assert threaded is not None
        assert WORK_S * 0.8 < threaded.cpu_s < WORK_S * 1.5
        assert threaded.longest_step_s < WORK_S * 0.9
        assert None in [await cost(short) for _ in range(20)], "a pause of the machine counts, too"
    client.close()
