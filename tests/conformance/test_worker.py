"""What workers and schedulers do, on every kind of broker."""

from __future__ import annotations

import asyncio
import threading

import pytest

import upnext
from tests.support.serving import serving
from tests.support.topologies import Topology
from tests.support.waiting import wait_until_async
from upnext import Future, Worker
from upnext.core.keys import Keys
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import crons, dead_letters, explain, jobs, tasks
from upnext.errors import TaskExecutionError, TaskTimeoutError


async def test_every_kind_of_job(topology: Topology, namespace: str) -> None:
    worker = Worker("conformance", concurrency=4)
    ticks: list[int] = []
    heard: list[tuple[str, int]] = []
    tries: list[int] = []

    @worker.task
    def in_a_thread(n: int) -> str:
        return f"{threading.current_thread().name.startswith('upnext-sync')} {n}"

    @worker.task(retries=2, retry_delay=0.05)
    async def third_time() -> int:
        tries.append(upnext.get_current_context().attempt)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return len(tries)

    @worker.task(rate_limit="100/s", max_concurrency=1)
    async def limited(n: int) -> int:
        return n

    @worker.task(timeout=0.1)
    async def slow() -> None:
        await asyncio.sleep(30)

    @worker.task
    async def parent(n: int) -> int:
        return (await child.wait(n)).value + 1

    @worker.task
    async def child(n: int) -> int:
        return n * 10

    @worker.cron("* * * * * *")
    async def every_second() -> None:
        ticks.append(1)

    ordered = worker.event("ordered")

    @ordered.on
    async def one(order_id: str) -> None:
        heard.append(("one", len(order_id)))

    @ordered.on
    async def two(**fields: object) -> None:
        heard.append(("two", len(fields)))

    async with serving(topology.url, namespace, worker):
        assert (await in_a_thread.wait(1)).value == "True 1"
        assert (await third_time.wait()).value == 3
        assert (await third_time.options(delay=0.05, priority="high").wait()).ok
        futures = await limited.submit_many([(n,) for n in range(10)])
        assert [await future for future in futures] == list(range(10))
        with pytest.raises(TaskTimeoutError):
            await slow.wait()
        assert (await parent.wait(4)).value == 41
        assert await ordered.send(order_id="o-1", total=3) == 2
        await wait_until_async(lambda: sorted(heard) == [("one", 3), ("two", 2)], 5, "both handlers")
        await wait_until_async(lambda: len(ticks) >= 2, 5, "two ticks")


async def test_what_people_do(topology: Topology, namespace: str) -> None:
    worker = Worker("conformance", concurrency=2)
    running = asyncio.Event()
    fail = [True]

    @worker.task
    async def endless() -> None:
        running.set()
        await asyncio.sleep(600)

    @worker.task
    async def doomed() -> str:
        if fail:
            raise ValueError("no")
        return "well"

    @worker.cron("0 0 1 1 *")
    async def yearly() -> None: ...

    keys, broker = Keys(namespace), SyncQueueClient(topology.url, namespace)

    def look() -> None:
        assert {task.name for task in tasks.tasks(broker, keys, 0)} == {"endless", "doomed", "yearly"}
        assert [cron.name for cron in crons.crons(broker, keys)] == ["yearly"]

    async with serving(topology.url, namespace, worker):
        future = await endless.submit()
        await asyncio.wait_for(running.wait(), 30)
        assert await future.cancel()
        with pytest.raises(TaskExecutionError) as cancelled:
            await future.result(60)
        assert cancelled.value.task_result.status == "cancelled"

        with pytest.raises(TaskExecutionError) as failed:
            await doomed.wait()
        job_id = failed.value.task_result.job_id
        fail.clear()
        assert [job.job_id for job in await asyncio.to_thread(jobs.dead_letters, broker, keys)] == [job_id]
        await asyncio.to_thread(dead_letters.retry, broker, keys, [job_id])
        assert await doomed.future(job_id).value(60) == "well"

        await asyncio.to_thread(look)
        assert await asyncio.to_thread(tasks.pause, broker, keys, "doomed")

        async def held() -> Future[str] | None:
            """A job that does not run; a read that waited already may still take one."""
            future = await doomed.submit()
            try:
                await future.result(0.3)
            except TimeoutError:
                return future
            return None

        waiting = await wait_until_async(held, 5, "a job of the paused task to wait")
        assert waiting is not None
        assert (await asyncio.to_thread(jobs.job, broker, keys, waiting.job_id)).status == "queued"
        assert (await asyncio.to_thread(explain.explain, broker, keys, waiting.job_id)).gate == "paused"
        assert await asyncio.to_thread(tasks.resume, broker, keys, "doomed")
        assert await waiting.value(60) == "well"
    broker.close()
