"""The loop of virtual time that models run on."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.support import virtual_time
from tests.support.virtual_time import START_S, TICK_S, Stalled


def test_a_day_passes_at_once_and_to_the_moment() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        marks = [loop.time()]
        await asyncio.sleep(86_400)
        marks.append(loop.time())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        marks.append(loop.time())
        return marks

    begun = time.monotonic()
    marks = virtual_time.run(main, random.Random(1))
    assert time.monotonic() - begun < 10
    assert marks == pytest.approx([START_S, START_S + 86_400, START_S + 86_460], abs=10 * TICK_S)


def test_what_waits_for_ever_is_a_finding() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        virtual_time.run(main, random.Random(1))


def order_of(seed: int) -> list[int]:
    """Ten tasks that are due at one moment, half of them woken by a timer, half by an event."""
    seen: list[int] = []

    async def main() -> None:
        event = asyncio.Event()

        async def one(number: int) -> None:
            await (asyncio.sleep(1) if number % 2 else event.wait())
            seen.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(10)]
        await asyncio.sleep(1)
        event.set()
        await asyncio.gather(*tasks)

    virtual_time.run(main, random.Random(seed))
    return seen


def test_the_seed_draws_the_order_and_repeats_it() -> None:
    assert order_of(3) == order_of(3)
    orders = [order_of(seed) for seed in range(20)]
    assert len({tuple(one) for one in orders}) > 10
    assert {one[0] % 2 for one in orders} == {0, 1}, "timers and events come in either order"


def test_quiet_is_between_the_moments() -> None:
    done: list[str] = []
    seen: list[tuple[str, ...]] = []

    async def main() -> None:
        async def chain() -> None:
            for number in range(3):
                done.append(f"{number}")
                await asyncio.sleep(0)

        await chain()
        await asyncio.sleep(1)
        await chain()
        await asyncio.sleep(1)

    virtual_time.run(main, random.Random(1), quiet=lambda: seen.append(tuple(done)))
    assert [len(one) for one in seen] == [3, 6], "all that is ready at a moment is done before the clock moves"


def test_what_a_run_leaves_behind_is_ended() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    assert virtual_time.run(main, random.Random(1)).cancelled()
    assert ended == ["forever"]
