"""Workers in this process, on the test's own loop and broker: what a test of the engine needs between submit and result."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import upnext
from tests.support.waiting import given
from upnext.core.keys import Keys
from upnext.core.spec import ServiceSpec
from upnext.engine.client import per_loop
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.local import run_service
from upnext.service import LOADER, load, named_apart

_numbers = itertools.count(1)


class Running:
    """A service that runs; `broker` asks what the SDK has no word for."""

    def __init__(self, broker: QueueClient, stopping: asyncio.Event, lives: Sequence[asyncio.Task[list[str]]]) -> None:
        self.broker = broker
        self._lives = lives
        self.keys = Keys(broker.keys.namespace)
        self.stopping = stopping

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return all(life.done() for life in self._lives)

    async def command(self, *words: str | bytes | float) -> object:
        return await self.broker.link.command(*words)

    async def pending(self, task: str) -> int:
        """Jobs of the task that consumers hold."""
        total = 0
        for stream in self.keys.streams(task):
            summary = await self.broker.link.command("XPENDING", stream, "w")
            total += summary[0]
        return total


@asynccontextmanager
async def serving(
    what: upnext.Worker | Sequence[upnext.Worker] | Path, redis_url: str, namespace: str, *, copies: int = 1
) -> AsyncGenerator[Running]:
    """Runs workers, or a service file, `copies` times beside each other, until the block ends.

    The environment says where the broker is, so the SDK's calls inside and outside of tasks reach it.
    """
    specs = [_spec(what) for _ in range(copies)]
    before = {name: os.environ.get(name) for name in ("UPNEXT_REDIS_URL", "UPNEXT_NAMESPACE")}
    os.environ.update(UPNEXT_REDIS_URL=redis_url, UPNEXT_NAMESPACE=namespace)
    stopping, ready = asyncio.Event(), asyncio.Semaphore(0)
    lives = [
        asyncio.create_task(
            run_service(
                spec,
                redis_url=redis_url,
                namespace=namespace,
                install_signals=False,
                stop_s=2.0,
                on_ready=ready.release,
                stopping=stopping,
            )
        )
        for spec in specs
    ]
    broker = QueueClient(redis_url, namespace)
    try:
        for _ in specs:
            up = asyncio.create_task(ready.acquire())
            done, _ = await asyncio.wait([up, *lives], timeout=given(15), return_when=asyncio.FIRST_COMPLETED)
            if up not in done:
                up.cancel()
                for life in done:
                    life.result()
                raise AssertionError("the service was not ready in time")
        yield Running(broker, stopping, lives)
    finally:
        stopping.set()
        await asyncio.wait(lives, timeout=given(20))
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await broker.aclose()
        await per_loop.aclose()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    for life in lives:
        if not life.cancelled():
            life.result()


def _spec(what: upnext.Worker | Sequence[upnext.Worker] | Path) -> ServiceSpec:
    if isinstance(what, Path):
        service = load(str(what))
        service.prepare()
        return service.spec
    workers = [what] if isinstance(what, upnext.Worker) else list(what)
    return ServiceSpec("tested", named_apart(workers), None, LOADER)


def write_service(folder: Path, source: str) -> Path:
    """A service file of a name that no other test has, for it is imported here too."""
    path = folder / f"service_{os.getpid()}_{next(_numbers)}.py"
    path.write_text(source)
    return path


def forget(path: Path) -> None:
    """Undoes the import of a service file."""
    sys.modules.pop(path.stem, None)
    if str(path.parent) in sys.path:
        sys.path.remove(str(path.parent))
