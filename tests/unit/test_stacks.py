"""What each asyncio task awaits, as text."""

from __future__ import annotations

import asyncio
import contextlib

from upnext.engine.worker import stacks


async def outer(gate: asyncio.Event) -> None:
    await middle(gate)


async def middle(gate: asyncio.Event) -> None:
    await gate.wait()  # stands here


async def test_the_chain_down_to_the_line_that_waits() -> None:
    task = asyncio.create_task(outer(asyncio.Event()), name="order-7")
    waiting = asyncio.create_task(asyncio.wait([task]), name="waiter")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    text = stacks.describe([task, waiting])
    assert "task (order-7)" in text
    assert text.index("in outer") < text.index("in middle") < text.index("# stands here")
    assert "waits for <Future pending" in text
    for one in (task, waiting):
        one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await one


async def test_it_stays_bounded() -> None:
    tasks = [asyncio.create_task(outer(asyncio.Event()), name="x" * 100) for _ in range(1000)]
    await asyncio.sleep(0)
    assert len(stacks.describe(tasks)) <= 48 << 10
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
