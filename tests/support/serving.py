"""A service of a test, run on the test's own loop as `upnext run` does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from tests.support.waiting import given
from upnext.engine.local import run_service
from upnext.running import service_of
from upnext.worker import Worker


@contextmanager
def broker_is(url: str, namespace: str) -> Generator[None]:
    """What this process submits goes there."""
    before = {name: os.environ.get(name) for name in ("UPNEXT_REDIS_URL", "UPNEXT_NAMESPACE")}
    os.environ.update(UPNEXT_REDIS_URL=url, UPNEXT_NAMESPACE=namespace)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def serving(url: str, namespace: str, *workers: Worker, name: str = "test") -> AsyncGenerator[None]:
    """Runs the workers, scheduler and all; the SDK's calls of this process go to the same broker."""
    with broker_is(url, namespace):
        async with running(url, namespace, *workers, name=name):
            yield


@asynccontextmanager
async def running(
    url: str, namespace: str, *workers: Worker, name: str = "test", stop_s: float = 5.0
) -> AsyncGenerator[None]:
    """The same, with the process's environment left alone."""
    ready, stopping = asyncio.Event(), asyncio.Event()
    service = replace(service_of(workers, {"UPNEXT_REDIS_URL": url}), name=name)
    life = asyncio.create_task(
        run_service(
            service,
            redis_url=url,
            namespace=namespace,
            install_signals=False,
            stop_s=stop_s,
            on_ready=ready.set,
            stopping=stopping,
        )
    )
    first = asyncio.create_task(ready.wait())
    try:
        async with asyncio.timeout(given(20)):
            await asyncio.wait([life, first], return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        yield
    finally:
        first.cancel()
        stopping.set()
        async with asyncio.timeout(given(stop_s + 20)):
            await life
