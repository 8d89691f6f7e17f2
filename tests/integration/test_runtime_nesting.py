"""Jobs that wait for jobs: the slot goes back meanwhile, so every depth ends at concurrency 1."""

from __future__ import annotations

import asyncio

import orjson

from tests.support.fleet import Fleet, task
from upnext.core.submission import Submission
from upnext.engine.attempt import CURRENT


async def call(fleet: Fleet, name: str, **arguments: object) -> object:
    """What Future.value does inside a job."""
    attempt = CURRENT.get()
    root_id = attempt.root_id or attempt.job_id
    job = Submission(name, orjson.dumps(arguments), parent_id=attempt.job_id, root_id=root_id)
    async with attempt.suspended():
        _, outcome = await attempt.broker.submit_and_wait(job, 60)
    return orjson.loads(outcome.value)


async def test_three_levels_with_fan_out_at_concurrency_one(redis_url: str, namespace: str) -> None:
    fleet = Fleet(redis_url, namespace)
    lineage: list[tuple[str | None, str | None]] = []

    async def tree(depth: int) -> int:
        attempt = CURRENT.get()
        lineage.append((attempt.parent_id, attempt.root_id))
        if not depth:
            return 1
        return sum(await asyncio.gather(*(call(fleet, "tree", depth=depth - 1) for _ in range(3)))) + 1  # type: ignore[arg-type]

    async with fleet:
        await fleet.worker(task(tree), concurrency=1)
        root = await fleet.submit("tree", depth=3)
        assert await fleet.value(root) == 1 + 3 + 9 + 27
        assert lineage[0] == (None, None)
        assert {root_id for _, root_id in lineage[1:]} == {root}
        assert await fleet.leaks() == []


async def test_never_more_run_than_the_concurrency_allows(redis_url: str, namespace: str) -> None:
    fleet = Fleet(redis_url, namespace)
    running = most = 0

    async def step() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    async def leaf() -> int:
        await step()
        return 1

    async def parent() -> object:
        await step()
        value = await call(fleet, "leaf")
        await step()
        return value

    async with fleet:
        await fleet.worker(task(leaf), task(parent), concurrency=3)
        jobs = [await fleet.submit("parent") for _ in range(20)]
        assert [await fleet.value(job_id) for job_id in jobs] == [1] * 20
        assert most <= 3


async def test_a_parent_that_is_cancelled_while_it_waits(redis_url: str, namespace: str) -> None:
    fleet = Fleet(redis_url, namespace)
    release = asyncio.Event()

    async def leaf() -> int:
        await release.wait()
        return 1

    async def parent() -> object:
        return await call(fleet, "leaf")

    async def quick() -> int:
        return 2

    async with fleet:
        life = await fleet.worker(task(leaf), task(parent), task(quick), concurrency=1)
        job_id = await fleet.submit("parent")
        await fleet.until(lambda: len(life.runtime.running_ids) == 2)
        assert await fleet.broker.cancel(job_id)
        await fleet.until(lambda: len(life.runtime.running_ids) == 1)
        release.set()
        for _ in range(3):
            assert (await fleet.run("quick")).value == b"2"
        assert await fleet.leaks() == []


async def test_a_parent_that_times_out_while_it_waits(redis_url: str, namespace: str) -> None:
    fleet = Fleet(redis_url, namespace)
    release = asyncio.Event()

    async def leaf() -> int:
        await release.wait()
        return 1

    async def parent() -> object:
        return await call(fleet, "leaf")

    async with fleet:
        life = await fleet.worker(task(leaf), task(parent, timeout_s=0.5), concurrency=1)
        outcome = await fleet.run("parent")
        assert outcome.reason is not None
        assert outcome.reason.value == "timeout"
        release.set()
        await fleet.until(lambda: not life.runtime.running_ids)
        assert await fleet.leaks() == []
