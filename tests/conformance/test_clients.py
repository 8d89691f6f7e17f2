"""What producers do, from a loop and from threads, on every kind of broker."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.serving import serving
from tests.support.topologies import Topology
from upnext import DuplicateJobError, Worker
from upnext.core.submission import Submission
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.errors import JobNotFoundError


def job(n: int = 0, **more: object) -> Submission:
    return Submission("t", b'{"n":%d}' % n, **more)  # type: ignore[arg-type]


async def test_async_client(topology: Topology, namespace: str) -> None:
    broker = QueueClient(topology.url, namespace)
    try:
        ids = await asyncio.gather(*(broker.submit(job(n)) for n in range(50)))
        ids += await broker.submit_many([job(n) for n in range(1500)])
        assert len(set(ids)) == 1550
        holder = await broker.submit(job(idempotency_key="k"))
        with pytest.raises(DuplicateJobError) as duplicate:
            await broker.submit(job(idempotency_key="k"))
        assert duplicate.value.job_id == holder
        delayed = await broker.submit(job(delay_s=3600))
        with pytest.raises(TimeoutError):
            await broker.wait(delayed, 0.05)
        assert await broker.cancel(delayed)
        assert await broker.cancel(ids[0])
        assert not await broker.cancel(ids[0])
        assert (await broker.wait(ids[0], 30)).status == "cancelled"
        with pytest.raises(JobNotFoundError):
            await broker.wait("t:n1-1", 30)
        assert not await broker.note("t", "n", b"1-1", holder, {"progress": 0.5}), "not fetched"
        assert await broker.read_notes(holder) == {}
    finally:
        await broker.aclose()


def test_blocking_client_from_threads(topology: Topology, namespace: str) -> None:
    broker = SyncQueueClient(topology.url, namespace)
    barrier = threading.Barrier(8)

    def submit(start: int) -> list[str]:
        barrier.wait(60)
        return [broker.submit(job(start + n)) for n in range(20)]

    try:
        with ThreadPoolExecutor(8) as pool:
            ids = [one for part in pool.map(submit, range(8)) for one in part]
        ids += broker.submit_many([job(n) for n in range(1500)])
        assert len(set(ids)) == 1660
        holder = broker.submit(job(idempotency_key="k"))
        with pytest.raises(DuplicateJobError) as duplicate:
            broker.submit(job(idempotency_key="k"))
        assert duplicate.value.job_id == holder
        delayed = broker.submit(job(delay_s=3600))
        with pytest.raises(TimeoutError):
            broker.wait(delayed, 0.05)
        assert broker.cancel(delayed)
        assert broker.wait(delayed, 30).status == "cancelled"
        with pytest.raises(JobNotFoundError):
            broker.wait("t:n1-1", 30)
    finally:
        broker.close()


async def test_both_wait_for_results(topology: Topology, namespace: str) -> None:
    worker = Worker("conformance", concurrency=4)

    @worker.task
    async def double(n: int) -> int:
        return 2 * n

    async with serving(topology.url, namespace, worker):
        assert (await double.wait(4)).value == 8
        assert [await future for future in await double.submit_many([(n,) for n in range(20)])] == [
            2 * n for n in range(20)
        ]
        result = await asyncio.to_thread(double.wait_sync, 5)
        assert result.value == 10
        key = uuid.uuid4().hex
        future = await asyncio.to_thread(double.submit_idempotent_sync, key, 6)
        assert await asyncio.to_thread(future.value_sync, 10) == 12
        assert (await double.wait_idempotent(key, 7)).value == 14  # the key is free again
