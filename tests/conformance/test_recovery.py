"""Faults that every kind of broker knows, and those of Sentinel and Cluster: the next job runs soon after."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
import redis

from tests.support.servers import Server
from tests.support.serving import serving
from tests.support.topologies import Cluster, Sentinels, Topology
from tests.support.waiting import PATIENCE, wait_until_async
from upnext import Future, Worker
from upnext.core.keys import Keys
from upnext.engine.calls.worker import RATE_BUCKET_S
from upnext.errors import QueueError

SOON_S = 2.0 * PATIENCE


def service() -> tuple[Worker, Any]:
    worker = Worker("conformance", concurrency=4)

    @worker.task
    async def echo(n: int) -> int:
        return n

    return worker, echo


async def check_soon(echo: Any) -> float:
    """A job of each client runs within SOON_S. -> how long the first took."""
    begun = time.monotonic()
    assert (await echo.wait(1, wait_timeout=SOON_S)).value == 1
    took_s = time.monotonic() - begun
    future: Future[int] = await asyncio.to_thread(echo.submit_sync, 2)
    assert await asyncio.to_thread(future.value_sync, SOON_S) == 2
    assert (await echo.options(delay=0.05).wait(3, wait_timeout=SOON_S)).value == 3
    return took_s


async def test_scripts_are_forgotten(topology: Topology, namespace: str) -> None:
    worker, echo = service()
    async with serving(topology.url, namespace, worker):
        await check_soon(echo)
        topology.forget_scripts()
        await check_soon(echo)


async def test_every_connection_is_cut(topology: Topology, namespace: str) -> None:
    worker, echo = service()
    async with serving(topology.url, namespace, worker):
        await check_soon(echo)
        for _ in range(3):
            topology.kill_clients()
            # a submit that is under way at this very moment may end as uncertain: let the client notice first
            await wait_until_async(lambda: reaches(echo), SOON_S, "the client to be back")
            await check_soon(echo)


async def reaches(echo: Any) -> bool:
    try:
        return await echo.submit(0) is not None
    except QueueError:
        return False


@pytest.mark.broker("sentinel")
async def test_a_planned_failover(topology: Sentinels, namespace: str) -> None:
    """The old master stays reachable, and its connections do not break: what is submitted goes to the new one soon after."""
    worker, echo = service()
    async with serving(topology.url, namespace, worker):
        await check_soon(echo)
        old, new = await asyncio.to_thread(topology.plan_a_failover)
        await wait_until_async(lambda: not clients(old) and len(clients(new)) >= 4, 10, "all to be at the new master")
        # it is made a replica only 8 s after the sentinels agreed: until then nothing but their word tells
        assert old.cli("ROLE")[0] == b"master"
        await check_soon(echo)
        await asyncio.to_thread(topology.end_of_failover)
        await check_soon(echo)


def clients(server: Server) -> list[bytes]:
    """Connections of ours there, the worker's and the scheduler's among them; a server that cuts this test's own off is asked again."""
    try:
        lines: bytes = server.cli("CLIENT", "LIST")
    except redis.ConnectionError:
        return [b"unknown"]
    return [line for line in lines.splitlines() if b"name=upnext-" in line]


@pytest.mark.broker("sentinel")
async def test_a_failover(topology: Sentinels, namespace: str) -> None:
    worker, echo = service()
    async with serving(topology.url, namespace, worker):
        await check_soon(echo)
        await asyncio.to_thread(topology.fail_over)
        back = time.monotonic()
        # what the clients learn is the sentinels' word, which may be later than the promotion
        await wait_until_async(lambda: reaches(echo), 10, "a submit to reach the new master")
        await check_soon(echo)
        assert time.monotonic() - back < 10 * PATIENCE
        future = await echo.submit(5)
        assert await future.value(SOON_S) == 5


@pytest.mark.broker("cluster")
async def test_the_slot_moves_under_load(topology: Cluster, namespace: str) -> None:
    worker, echo = service()
    async with serving(topology.url, namespace, worker):
        await check_soon(echo)
        before = topology.holder(namespace)
        done: list[int] = []
        stop = asyncio.Event()

        async def produce() -> None:
            number = 0
            while not stop.is_set():
                try:
                    await echo.submit_idempotent(str(number), number)
                except QueueError:  # the move is under way
                    continue
                done.append(number)
                number += 1
                await asyncio.sleep(0.005)

        producing = asyncio.create_task(produce())
        await wait_until_async(lambda: len(done) > 50, 5, "some load")
        await asyncio.to_thread(topology.move, namespace)
        assert topology.holder(namespace) is not before
        moved = len(done)
        await wait_until_async(lambda: len(done) > moved + 20, 2 * SOON_S, "the load to go on")
        stop.set()
        await producing
        await check_soon(echo)


@pytest.mark.broker("cluster")
async def test_submits_wait_for_a_slot_that_is_on_its_way_and_none_is_doubled(
    topology: Cluster, namespace: str
) -> None:
    worker = Worker("conformance", concurrency=4)
    ran: list[int] = []

    @worker.task
    async def note(n: int) -> int:
        ran.append(n)
        return n

    async with serving(topology.url, namespace, worker):
        assert (await note.wait(-1, wait_timeout=10)).value == -1
        with topology.moving(namespace):
            submits = [
                asyncio.create_task(note.submit(1)),
                asyncio.create_task(note.submit(2)),
                asyncio.create_task(note.submit_idempotent("key", 3)),
                asyncio.create_task(note.options(delay=0.05).submit(4)),
                asyncio.create_task(asyncio.to_thread(note.submit_sync, 5)),
            ]
            await asyncio.wait(submits, timeout=1.0)
        futures = await asyncio.gather(*submits)
        assert [await future.value(20) for future in futures] == [1, 2, 3, 4, 5]
        assert sorted(ran) == [-1, 1, 2, 3, 4, 5]


@pytest.mark.broker("cluster")
async def test_ends_wait_for_a_slot_whose_keys_are_all_still_there(topology: Cluster, namespace: str) -> None:
    """The keys that a script declares are there; those that it makes up, a result's, an idempotency key's, are not."""
    worker = Worker("conformance", concurrency=8)
    let_go = asyncio.Event()
    begun: list[int] = []

    @worker.task
    async def held(n: int) -> int:
        begun.append(n)
        await let_go.wait()
        return n

    keys = Keys(namespace)
    async with serving(topology.url, namespace, worker):
        futures = [await held.submit(n) for n in range(5)]
        waits = [asyncio.create_task(future.value(20)) for future in futures]
        await wait_until_async(lambda: len(begun) == 5, SOON_S)
        with contextlib.closing(topology.holder(namespace).client()) as admin:
            for key in (keys.where, keys.waiters, keys.dead_jobs, keys.cancel, keys.stats, keys.limits):
                admin.hset(key, "of-another", "1")
            admin.zadd(keys.dead, {"of-another:n1-0": 1})
            admin.xadd(keys.ends, {"j": "dof-another:n1-0"})
            now_s = int(time.time()) // RATE_BUCKET_S * RATE_BUCKET_S
            for bucket_s in range(now_s, now_s + 60, RATE_BUCKET_S):
                admin.hset(f"{keys.rate_prefix}{bucket_s}", "of-another", "1")
        with topology.moving(namespace, share=0):
            let_go.set()
            keyed = asyncio.create_task(held.submit_idempotent("key", 5))
            await asyncio.wait([keyed, *waits], timeout=1.0)
        assert [await value for value in waits] == [0, 1, 2, 3, 4]
        assert await (await keyed).value(20) == 5
        assert sorted(begun) == [0, 1, 2, 3, 4, 5]
