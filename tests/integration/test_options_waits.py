"""A job that waits for its children gives its slot back: nested flows finish at concurrency 1, with one worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from upnext.core.outcome import JobStatus

FAN = 3


async def test_three_levels_with_fan_out_at_concurrency_1(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)
    lineage: dict[str, tuple[str | None, str]] = {}
    at_once: list[int] = []
    most: list[int] = [0]

    def note() -> str:
        ctx = upnext.get_current_context()
        lineage[ctx.job_id] = (ctx.parent_id, ctx.root_id)
        return ctx.job_id

    @worker.task
    async def leaf(number: int) -> int:
        note()
        at_once.append(1)
        most[0] = max(most[0], len(at_once))
        await asyncio.sleep(0.005)
        at_once.pop()
        return number

    @worker.task
    async def middle(number: int) -> tuple[str, int]:
        me = note()
        values = await upnext.map_tasks(leaf, [(number * 10 + n,) for n in range(FAN)], concurrency=2)
        return me, sum(values)

    @worker.task
    async def top() -> tuple[str, list[tuple[str, int]]]:
        me = note()
        first = await upnext.gather(*(middle.wait(n) for n in range(FAN)))
        futures = await middle.submit_many([(n,) for n in range(FAN)])
        second = await upnext.gather(*futures)
        return me, [one.value for one in first] + second

    async with serving(worker, redis_url, namespace):
        result = await top.wait(wait_timeout=60)
        root, middles = result.value
        assert root == result.job_id
        assert sum(total for _, total in middles) == 2 * sum(
            number * 10 + n for number in range(FAN) for n in range(FAN)
        )
        assert most == [1], "concurrency still holds"
        ids = {job_id for job_id, _ in middles}
        assert len(ids) == 2 * FAN
        assert lineage[root] == (None, root)
        assert all(lineage[one] == (root, root) for one in ids)
        leaves = {job: parents for job, parents in lineage.items() if job.startswith("leaf:")}
        assert len(leaves) == 2 * FAN * FAN
        assert all(parent in ids and above == root for parent, above in leaves.values())
        ended = await leaf.future(next(iter(leaves))).result(60)
        assert (ended.parent_id, ended.root_id) == leaves[ended.job_id]


@pytest.mark.parametrize("pool_size", [None, 1])
async def test_plain_functions_wait_too(redis_url: str, namespace: str, pool_size: int | None) -> None:
    worker = upnext.Worker("w", concurrency=2 if pool_size else 1, sync_pool_size=pool_size)

    @worker.task
    def tree(depth: int) -> int:
        if not depth:
            return 1
        return sum(future.value_sync(30) for future in [tree.submit_sync(depth - 1) for _ in range(2)])

    @worker.task
    def own_loop() -> int:
        async def inside() -> int:
            return (await tree.wait(1)).value

        return asyncio.run(inside())

    async with serving(worker, redis_url, namespace):
        assert (await tree.wait(3, wait_timeout=60)).value == 8
        assert (await own_loop.wait(wait_timeout=60)).value == 2


async def test_a_parent_that_times_out_while_it_waits_leaves_no_slot_behind(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)
    let_go = asyncio.Event()

    @worker.task
    async def child() -> str:
        await let_go.wait()
        return "child"

    @worker.task(timeout=1.0)
    async def parent() -> str:
        return (await child.wait()).value

    @worker.task
    async def quick() -> str:
        return "quick"

    async with serving(worker, redis_url, namespace):
        for _ in range(3):
            with pytest.raises(upnext.TaskTimeoutError):
                await parent.wait(wait_timeout=30)
            let_go.set()
            assert (await quick.wait(wait_timeout=30)).value == "quick"
            let_go.clear()
        let_go.set()
        values: list[Any] = [await quick.wait(wait_timeout=30) for _ in range(5)]
        assert all(one.status is JobStatus.DONE for one in values)


async def test_a_chain_of_waits_each_the_first_thing_that_its_task_does(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)

    @worker.task
    async def chain(depth: int) -> list[str]:
        ctx = upnext.get_current_context()
        below = (await chain.wait(depth - 1)).value if depth else []
        return [ctx.job_id, *below]

    async with serving(worker, redis_url, namespace):
        result = await chain.wait(5, wait_timeout=30)
        assert len(set(result.value)) == 6


async def test_the_wait_of_a_plain_function_ends_at_its_time_though_its_slot_is_taken(
    redis_url: str, namespace: str
) -> None:
    """Its child ends only after the wait has: it would wait for ever for the child's slot."""
    worker = upnext.Worker("w", concurrency=1)
    let_go = asyncio.Event()
    loop = asyncio.get_running_loop()

    @worker.task
    async def child() -> None:
        await let_go.wait()

    @worker.task
    def parent(own_loop: bool) -> str:
        future = child.submit_sync()

        async def inside() -> None:
            await future.value(0.2)

        with pytest.raises(TimeoutError):
            asyncio.run(inside()) if own_loop else future.value_sync(0.2)
        loop.call_soon_threadsafe(let_go.set)
        future.value_sync(30)
        return "on"

    async with serving(worker, redis_url, namespace):
        for own_loop in (False, True):
            assert (await parent.wait(own_loop, wait_timeout=30)).value == "on"
            let_go.clear()


async def test_a_task_that_outlives_its_job_and_then_waits_gives_no_slot_back(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)
    behind: set[asyncio.Task[Any]] = set()
    go_on, at_once, most = asyncio.Event(), 0, 0

    @worker.task
    async def quick() -> None: ...

    @worker.task
    async def forgetful() -> None:
        async def later() -> None:
            await go_on.wait()
            await quick.wait(wait_timeout=30)

        behind.add(asyncio.create_task(later()))
        await asyncio.sleep(0)

    @worker.task
    async def counted() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(20):
            await asyncio.sleep(0)
        at_once -= 1

    async with serving(worker, redis_url, namespace):
        for _ in range(3):
            await forgetful.wait(wait_timeout=30)
        go_on.set()
        await asyncio.gather(*behind)
        await upnext.gather(*(counted.wait() for _ in range(20)))
        assert most == 1
