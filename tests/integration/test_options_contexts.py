"""No context of a job reaches what is not its own: neither the lines of others, nor what lives on when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from contextvars import Context, ContextVar
from types import FrameType
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import TooLateError, wait_until_async
from upnext.engine.attempt import CURRENT, current_job_id

PLANT: ContextVar[str] = ContextVar("plant")


def planted() -> list[str]:
    """What holds a job's context: a task, a timer, a transport. (CPython may keep the last one or two that ran, without a holder.)"""
    gc.collect()
    found: list[str] = []
    for one in [one for one in gc.get_objects() if isinstance(one, Context) and (PLANT in one or CURRENT in one)]:
        found += [shown(holder) for holder in gc.get_referrers(one) if not isinstance(holder, FrameType | list)]
    return found


def shown(holder: object) -> str:
    """The loop keeps a cancelled timer until it would have been due: that of a submit for 5 s."""
    due = f" due in {holder.when() - time.monotonic():.1f} s" if isinstance(holder, asyncio.TimerHandle) else ""
    return f"{holder!r}{due}"


async def use_everything(redis_url: str, namespace: str) -> None:
    """Each of the jobs is the first to need something: a connection, a listener, a timer, a thread, a runner."""
    worker = upnext.Worker("w", concurrency=2, sync_pool_size=1)
    event = worker.event("done")

    @worker.task
    async def leaf(fail: bool = False) -> None:
        PLANT.set("leaf")
        if fail:
            raise ValueError("planned")

    @worker.task(retries=1, retry_delay=0.01)
    async def asks_much(number: int) -> None:
        PLANT.set("asks_much")
        ctx = upnext.get_current_context()
        ctx.set_progress(0.5)
        ctx.checkpoint({"number": number})
        await leaf.submit_idempotent(f"key-{number}")
        await leaf.options(delay=0.01).submit()
        await event.send(number=number)
        with pytest.raises(TimeoutError):
            await leaf.options(delay=60).wait(wait_timeout=0.05)
        await upnext.gather(*(leaf.wait(fail) for fail in (False, True)), return_exceptions=True)
        if ctx.attempt == 1:
            raise ValueError("planned")

    @worker.task(timeout=0.2)
    async def too_slow() -> None:
        PLANT.set("too_slow")
        await asyncio.Event().wait()

    @worker.task
    def in_a_thread() -> None:
        PLANT.set("in_a_thread")
        leaf.submit_sync().value_sync(30)

    @event.on
    async def heard(number: int) -> None:
        PLANT.set("heard")

    async with serving(worker, redis_url, namespace):
        jobs: list[Any] = [await asks_much.submit(number) for number in range(6)]
        jobs += [await too_slow.submit(), await in_a_thread.submit(), await in_a_thread.submit()]
        for job in jobs:
            with contextlib.suppress(upnext.TaskTimeoutError):
                await job.value(30)
        with contextlib.suppress(TooLateError):  # what holds one says more
            await wait_until_async(lambda: not planted(), 10)
        assert planted() == []


def test_nothing_that_lives_on_holds_the_context_of_a_job(redis_url: str, namespace: str) -> None:
    """On asyncio's own loop, whose handles the collector knows."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(use_everything(redis_url, namespace))


async def test_lines_carry_no_other_job_s_id(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1, prefetch=5)
    lines: list[tuple[str | None, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((current_job_id(), record.getMessage()))

    @worker.task
    async def child() -> None:
        await asyncio.sleep(0.05)

    @worker.task
    async def boss() -> None:
        await asyncio.sleep(0.05)
        await child.wait()

    @worker.task
    async def fails() -> None:
        raise ValueError("planned")

    handler, log = Keep(logging.INFO), logging.getLogger("upnext")
    log.addHandler(handler)
    try:
        async with serving(worker, redis_url, namespace):
            for _ in range(5):
                boss_job = await boss.submit()
                failing = [await fails.submit() for _ in range(4)]
                await boss_job.value(30)
                for one in failing:
                    with pytest.raises(upnext.TaskExecutionError):
                        await one.value(30)
    finally:
        log.removeHandler(handler)
    reported = [(carried, line) for carried, line in lines if line.startswith("fails:")]
    assert len(reported) == 20
    assert [pair for pair in reported if pair[0] is not None and not pair[1].startswith(pair[0])] == []
