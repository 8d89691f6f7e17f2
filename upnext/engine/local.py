"""A whole service in one process: all its workers on this loop, its scheduler on a thread of its own, so a busy loop loses no lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import threading
from collections.abc import Callable

from upnext.core.spec import ServiceSpec
from upnext.engine.host import NoHost
from upnext.engine.runtime import RuntimeSettings, WorkerRuntime
from upnext.engine.scheduler import DeathNotice, Scheduler, SchedulerSettings
from upnext.errors import BrokerRefusedError

log = logging.getLogger("upnext")

STOP_S = 30.0


class _LocalHost(NoHost):
    def __init__(self, consumer_is: Callable[[str], None], is_ready: Callable[[], None]) -> None:
        self._consumer_is, self._is_ready = consumer_is, is_ready

    def consumer(self, consumer: str) -> None:
        self._consumer_is(consumer)

    def ready(self) -> None:
        self._is_ready()


class SchedulerThread:
    """A Scheduler on a loop of its own thread; its methods may be called from anywhere."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._alive: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduler: Scheduler | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="upnext-scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self, consumers: set[str]) -> None:
        self._alive = set(consumers)
        if self._scheduler is not None:
            self._tell(self._scheduler.alive, self._alive)

    def died(self, notice: DeathNotice) -> None:
        if self._scheduler is not None:
            self._tell(self._scheduler.died, notice)

    def stop(self) -> None:
        self._stop.set()
        if self._scheduler is not None:
            self._tell(self._scheduler.stop_soon)
        self._thread.join(5)

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                self._loop.call_soon_threadsafe(what, *args)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BrokerRefusedError as refused:
            log.error("the scheduler gave up: %s", refused)  # the workers' runtimes are refused as well, and raise it

    async def _run(self) -> None:
        self._scheduler = Scheduler(self._settings, lambda consumer: None)
        self._scheduler.alive(self._alive)
        self._loop = asyncio.get_running_loop()
        if not self._stop.is_set():
            await self._scheduler.run()


async def run_service(
    service: ServiceSpec,
    *,
    redis_url: str | None,
    namespace: str = "default",
    install_signals: bool = True,
    stop_s: float = STOP_S,
    on_ready: Callable[[], None] | None = None,
    stopping: asyncio.Event | None = None,
) -> list[str]:
    """Runs until SIGTERM or SIGINT (with `install_signals`) or `stopping`; drains, `stop_s` at most. -> ids of the jobs that still ran.

    `redis_url` goes before those that workers name. Raises what a runtime raises at boot.
    """
    loop = asyncio.get_running_loop()
    stopping = stopping or asyncio.Event()
    now = asyncio.Event()
    daemon_id = f"local-{secrets.token_hex(4)}"
    runtimes: list[WorkerRuntime] = []
    waiting = len(service.workers)
    threads: dict[str, SchedulerThread] = {}
    consumers: dict[str, dict[int, str]] = {}

    def ready() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting and on_ready is not None:
            on_ready()

    def consumer_is(url: str, number: int) -> Callable[[str], None]:
        def tell(consumer: str) -> None:
            consumers[url][number] = consumer
            threads[url].alive(set(consumers[url].values()))

        return tell

    for number, worker in enumerate(service.workers):
        url = redis_url or worker.redis_url
        if url is None:
            raise ValueError(f"worker {worker.name} has no Redis URL")
        settings = RuntimeSettings(url, namespace, daemon_id)
        if url not in threads:
            threads[url] = SchedulerThread(SchedulerSettings(url, namespace, daemon_id, service, settings.generation_ms))
            consumers[url] = {}
        host = _LocalHost(consumer_is(url, number), ready)
        runtimes.append(WorkerRuntime(worker, service, settings, host))

    def on_signal(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            now.set()
        stopping.set()

    caught = (signal.SIGTERM, signal.SIGINT) if install_signals else ()
    for number in caught:
        loop.add_signal_handler(number, on_signal, number)
    for thread in threads.values():
        thread.start()
    left: list[str] = []
    lives = [asyncio.create_task(runtime.run(), name="upnext-worker") for runtime in runtimes]
    stop = asyncio.create_task(stopping.wait(), name="upnext-stopping")
    try:
        await asyncio.wait([*lives, stop], return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            force = asyncio.create_task(now.wait(), name="upnext-now")
            drain = asyncio.gather(*(runtime.stop(stop_s) for runtime in runtimes))
            await asyncio.wait([drain, force], return_when=asyncio.FIRST_COMPLETED)
            if drain.done():
                left = [job for jobs in drain.result() for job in jobs]
            else:
                drain.cancel()
                await asyncio.gather(drain, return_exceptions=True)
                left = [job for runtime in runtimes for job in runtime.running_ids]
                for life in lives:
                    life.cancel()
            force.cancel()
            await asyncio.gather(force, return_exceptions=True)
        done = [life for life in lives if life.done() and not life.cancelled()]
        for life in done:
            life.result()
        await asyncio.gather(*lives, return_exceptions=not stopping.is_set() or now.is_set())
    finally:
        stop.cancel()
        for life in lives:
            life.cancel()
        await asyncio.gather(stop, *lives, return_exceptions=True)
        for number in caught:
            loop.remove_signal_handler(number)
        for thread in threads.values():
            await asyncio.to_thread(thread.stop)
    return left
