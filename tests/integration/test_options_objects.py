"""What a job held is free as soon as it has ended, however it ended, without a collection: a frame that an error keeps keeps its locals."""

from __future__ import annotations

import asyncio
import gc
import logging
import textwrap
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

import upnext
from tests.support.service import forget, serving, write_service
from tests.support.waiting import wait_until_async
from upnext.engine.worker.failures import JobCancelled, JobTimeout, PoolCrash, RemoteError

ENDS = ("ok", "raised", "child failed", "timed out", "cancelled")


class Held:
    """Stands for what is large."""


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def records_as_text() -> Iterator[None]:
    """The handlers of a test run keep records, and with the exception of a last failure its frames; those of a worker write and forget."""

    def write(record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        return True

    log = logging.getLogger("upnext.worker")
    log.addFilter(write)
    yield
    log.removeFilter(write)


def errors_alive() -> list[BaseException]:
    ours = JobCancelled | JobTimeout | PoolCrash | RemoteError
    return [one for one in gc.get_objects() if isinstance(one, ours)]


def nothing(*_: object) -> None: ...


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["async", "hooked", "thread"])
@pytest.mark.usefixtures("no_collections", "records_as_text")
async def test_in_the_worker(redis_url: str, namespace: str, kind: str, end: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    alive: WeakSet[Held] = WeakSet()
    began, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    timeout = 0.3 if end == "timed out" else 60

    @worker.task
    async def fails() -> None:
        raise LookupError("child")

    def begin() -> Held:
        held = Held()
        alive.add(held)
        loop.call_soon_threadsafe(began.set)
        if end == "raised":
            raise ValueError("planned")
        return held

    async def in_the_loop() -> None:
        held = begin()
        if end == "child failed":
            await upnext.gather(fails.wait(), asyncio.sleep(0))
        await asyncio.sleep(0 if end in {"ok", "child failed"} else 60)
        del held

    def in_a_thread() -> None:
        held = begin()
        if end == "child failed":
            fails.submit_sync().value_sync(30)
        if end != "ok":
            let_go.wait(60)
        del held

    task = worker.task(timeout=timeout, on_complete=nothing if kind == "hooked" else None, name="holds")(
        in_a_thread if kind == "thread" else in_the_loop
    )
    async with serving(worker, redis_url, namespace):
        future = await task.submit()
        await began.wait()
        if end == "cancelled":
            await future.cancel()
        if end == "ok":
            await future.value(30)
        else:
            with pytest.raises(upnext.TaskExecutionError):
                await future.value(30)
        let_go.set()
        await wait_until_async(lambda: not alive, 10, "what the job held to be free")
        await wait_until_async(lambda: not errors_alive(), 10, "the engine's own errors to be free")


SOURCE = """
import time
from pathlib import Path
import upnext

worker = upnext.Worker("pooled", concurrency=2, sync_executor="process")

@worker.task
async def fails() -> None:
    raise LookupError("child")

@worker.task(timeout=1.0)
def holds(end: str) -> None:
    Path(__file__).with_suffix(f".{end}").touch()
    if end == "raised":
        raise ValueError("planned")
    if end == "child failed":
        fails.submit_sync().value_sync(30)
    if end != "ok":
        time.sleep(60)
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    path = write_service(tmp_path, textwrap.dedent(SOURCE))
    yield path
    forget(path)


@pytest.mark.usefixtures("no_collections", "records_as_text")
async def test_in_a_pool_process(service: Path, redis_url: str, namespace: str) -> None:
    """The worker's side of it: the errors, which hold its frames."""
    async with serving(service, redis_url, namespace):
        tasks: Any = import_module(service.stem)
        await tasks.holds.wait("ok", wait_timeout=30)
        for end in ENDS[1:]:
            future = await tasks.holds.submit(end)
            if end == "cancelled":
                await wait_until_async(service.with_suffix(".cancelled").exists, 10)
                await future.cancel()
            with pytest.raises(upnext.TaskExecutionError):
                await future.value(30)
            await wait_until_async(lambda: not errors_alive(), 10, f"the errors to be free: {end}")
