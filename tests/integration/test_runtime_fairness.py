"""Whose job is next: no lane and no task waits for the backlog of another, however many tasks there are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.fleet import Fleet, task
from tests.support.waiting import wait_until_async
from upnext.core.spec import TaskSpec
from upnext.core.submission import Submission

JOBS = 300


def noting(name: str, started: list[str], gate: Callable[[], Awaitable[None]]) -> TaskSpec:
    async def run(number: int = 0) -> None:
        started.append(name if number >= 0 else f"{name} again")
        await gate()

    return task(run, name)


def limit(one: TaskSpec) -> TaskSpec:
    """The same with a limit that is never reached."""
    return task(one.function, one.name, max_concurrency=100)


async def moment() -> None:
    await asyncio.sleep(0.001)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
async def test_a_job_that_came_back_is_soon_next_whatever_number_of_tasks_is_full(
    redis_url: str, namespace: str, count: int
) -> None:
    started: list[str] = []
    names = [f"t{number}" for number in range(count)]
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        specs = [noting(name, started, moment) for name in names]
        for name in names:
            await fleet.broker.submit_many([Submission(name, b'{"number":%d}' % n) for n in range(JOBS)])
        life = await fleet.worker(*specs, concurrency=1, prefetch=0)
        await wait_until_async(lambda: len(started) > 20)
        for name in names:
            meta = b'{"i":"%s:n1-1","l":"n"}' % name.encode()
            await fleet.command("XADD", fleet.keys.stream(name, "b"), "*", "p1", b'{"number":-1}', "m", meta)
        at = len(started)
        life.runtime._fetcher.wake_for_all()
        await wait_until_async(lambda: len([one for one in started if one.endswith("again")]) == count)
        last = max(position for position, one in enumerate(started) if one.endswith("again"))
        assert last - at <= 16 * count, "in place of the end of the backlog"
        assert len(started) < JOBS * count


class Slots:
    """Jobs that end one by one, when the test lets them."""

    def __init__(self) -> None:
        self._gates: list[asyncio.Event] = []

    async def take(self) -> None:
        gate = asyncio.Event()
        self._gates.append(gate)
        await gate.wait()

    async def give(self, started: list[str]) -> str:
        """One ends. -> what starts in its place"""
        before = len(started)
        self._gates.pop(0).set()
        await wait_until_async(lambda: len(started) > before)
        return started[before]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_limited_task_does_not_keep_another_from_the_next_slots(
    redis_url: str, namespace: str, concurrency: int
) -> None:
    started: list[str] = []
    slots = Slots()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()

        limited = [limit(noting(name, started, slots.take)) for name in ("lim", "lim2")]
        await fleet.worker(*limited, noting("free", started, slots.take), concurrency=concurrency, prefetch=0)
        await fleet.broker.submit_many([Submission("lim", b"{}")] * 40)
        await wait_until_async(lambda: len(started) == concurrency)
        await fleet.broker.submit_many([Submission("lim2", b"{}")] * 40)
        await fleet.submit("free")
        next_ones = [await slots.give(started) for _ in range(4)]
        assert "free" in next_ones[:3], next_ones
        assert "lim2" in next_ones[:3], next_ones
        assert "lim" in next_ones, next_ones


async def test_slots_that_come_free_together_are_not_all_a_limited_tasks(redis_url: str, namespace: str) -> None:
    started: list[str] = []
    slots = Slots()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        lim, free = limit(noting("lim", started, slots.take)), noting("free", started, slots.take)
        await fleet.broker.submit_many([Submission("lim", b"{}")] * 40)
        await fleet.submit("free")
        await fleet.worker(lim, free, concurrency=4)
        await wait_until_async(lambda: len(started) == 4)
        assert sorted(started) == ["free", "lim", "lim", "lim"], "every slot is used, one of them by the other"


async def test_what_was_fetched_ahead_is_not_overtaken_for_ever(redis_url: str, namespace: str) -> None:
    """Jobs of a limited task go before those that are held, since they have a permit."""
    started: list[str] = []
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        lim, free = limit(noting("lim", started, moment)), noting("free", started, moment)
        await fleet.broker.submit_many([Submission("lim", b"{}")] * 2000)
        await fleet.worker(lim, free, concurrency=2, prefetch=20)
        await wait_until_async(lambda: len(started) > 100)
        await fleet.submit("free")
        await wait_until_async(lambda: "free" in started)
        assert started.index("free") < 1900, "long before the end of the backlog"
