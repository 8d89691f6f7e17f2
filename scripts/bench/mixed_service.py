"""The service of the suite `mixed`: what users' tasks do, one kind each."""

from __future__ import annotations

import asyncio
import os

from ticks import tick

import upnext

FREE, LIMITED = 0.0, 1.0
RESULT = "x" * 4096

worker = upnext.Worker("bench", concurrency=int(os.environ.get("BENCH_CONCURRENCY", "100")))
happened = worker.event("bench.happened")


@worker.task
async def sleeping() -> None:
    tick()
    await asyncio.sleep(0.01)


@worker.task
def in_thread(order_id: str, items: list[str]) -> None:
    tick()


@worker.task
async def big_result() -> str:
    tick()
    return RESULT


@worker.task(retries=3, retry_delay=0.2)
async def flaky(number: int) -> None:
    """One job in ten fails once."""
    tick()
    if number % 10 == 0 and upnext.get_current_context().attempt == 1:
        raise ConnectionError("the other side did not answer")


@worker.task(rate_limit="100/s")
async def limited(order_id: str, items: list[str]) -> None:
    tick(LIMITED)


@worker.task
async def free(order_id: str, items: list[str]) -> None:
    tick(FREE)


async def handler(order_id: str, items: list[str]) -> None:
    tick()


for number in range(5):
    happened.on(name=f"handler_{number}")(handler)
