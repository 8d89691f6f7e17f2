"""The service of the suite `scale`: BENCH_TASKS tasks in one worker, most of them the same no-op."""

from __future__ import annotations

import asyncio
import os

from ticks import tick

import upnext

TASKS = int(os.environ.get("BENCH_TASKS", "5"))

worker = upnext.Worker("bench", concurrency=100)


@worker.task
async def noop(order_id: str, items: list[str]) -> None:
    tick()


@worker.task
async def stamp(at: float) -> None:
    tick(at)


@worker.task
async def crash() -> None:
    """Runs until its worker is killed; the next time it ends at once."""
    tick()
    if upnext.get_current_context().crashes == 0:
        await asyncio.Event().wait()


async def spare(order_id: str, items: list[str]) -> None:
    tick()


for number in range(len(worker.tasks), TASKS):
    worker.task(name=f"spare_{number}")(spare)
