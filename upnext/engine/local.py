"""A whole service in one process: all its workers on this loop, its scheduler on a thread of its own, so a busy loop loses no lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from upnext.core.spec import ServiceSpec
from upnext.engine import signals
from upnext.engine.attempt import Attempt
from upnext.engine.job_lines import JobLines
from upnext.engine.local_status import SLOT, LocalStatus
from upnext.engine.scheduler.scheduler import DeathNotice, Scheduler, SchedulerSettings
from upnext.engine.worker.host import NoHost
from upnext.engine.worker.runtime import WorkerRuntime
from upnext.engine.worker.settings import RuntimeSettings
from upnext.errors import BrokerRefusedError

log = logging.getLogger("upnext")

STOP_S = 30.0


class _LocalHost(NoHost):
    def __init__(
        self, consumer_is: Callable[[str], None], is_ready: Callable[[], None], status: LocalStatus, lines: JobLines
    ) -> None:
        self._consumer_is, self._is_ready, self._status, self._lines = consumer_is, is_ready, status, lines

    def consumer(self, consumer: str) -> None:
        self._lines.forget()
        self._consumer_is(consumer)

    def ready(self) -> None:
        self._is_ready()

    def started(
        self,
        cell: int,
        task: int,
        lane: int,  # noqa: ARG002 - the entry's id says enough here
        entry_ms: int,
        entry_seq: int,
        born: int,
        born_ms: int,
        born_seq: int,
    ) -> None:
        if self._lines.are_wanted:
            self._lines.started(cell, (task, entry_ms, entry_seq), f"{chr(born)}{born_ms}-{born_seq}")

    def failed(self, job_id: str, task: str, error: str) -> None:  # noqa: ARG002 - the id names the task
        self._lines.failed(job_id, error)

    def retried(self) -> None:
        self._status.retried()

    def ended(self, cell: int, ok: bool) -> None:
        self._status.count(ok=ok)
        if self._lines.are_wanted:
            self._lines.ended(cell, ok=ok)

    def parked(self, cell: int) -> None:
        if self._lines.are_wanted:
            self._lines.parked(cell)

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        self._status.count(ok=ok)
        if self._lines.are_wanted:
            self._lines.ended_parked((task, entry_ms, entry_seq), ok=ok)

    def stuck(self, job_id: str, reason: str) -> None:
        log.error("%s can't be stopped (%s): it is recorded as ended and goes on in this process", job_id, reason)

    def cut(self) -> None:
        """What still runs is cut off with this process."""
        self._lines.cut()


def _ignore(_consumer: str) -> None:
    """No supervisor waits for word of a consumer."""


class Front(Protocol):
    """What is served beside the workers: HTTP. It drains before they do, for requests may wait for jobs."""

    urls: list[str]
    """Where it is reached, once it is ready."""

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until it was drained; ended by an error, it has failed."""
        ...

    async def drain(self) -> None: ...


class SchedulerThread:
    """A Scheduler on a loop of its own thread; its methods may be called from anywhere."""

    def __init__(self, settings: SchedulerSettings, status: LocalStatus) -> None:
        self._settings, self._status = settings, status
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
        self._scheduler = Scheduler(self._settings, _ignore)
        self._scheduler.reports.ask = self._status.ask
        self._scheduler.alive(self._alive)
        self._loop = asyncio.get_running_loop()
        if not self._stop.is_set():
            await self._scheduler.run()


class LocalService:
    """The workers of one service on the running loop, with a scheduler thread for each broker that they use."""

    def __init__(
        self,
        service: ServiceSpec,
        redis_url: str | None,
        namespace: str,
        on_ready: Callable[[], None] | None,
        passing: bool = False,
        fires: bool = True,
        logs_jobs: bool = False,
    ) -> None:
        self._on_ready = on_ready
        self._unready = len(service.workers)
        self._threads: dict[str, SchedulerThread] = {}
        self._consumers: dict[str, dict[int, str]] = {}
        self._lives: list[asyncio.Task[None]] = []
        self.runtimes: list[WorkerRuntime] = []
        self._hosts: list[_LocalHost] = []
        self._status = LocalStatus(service, namespace, self._running)
        daemon_id = f"local-{secrets.token_hex(4)}"
        for number, worker in enumerate(service.workers):
            url = redis_url or worker.redis_url
            if url is None:
                raise ValueError(f"worker {worker.name} has no Redis URL")
            settings = RuntimeSettings(
                url, namespace, daemon_id, returns=False, passing=passing, place={"name": service.name, "slot": SLOT}
            )
            if url not in self._threads:
                schedule = SchedulerSettings(
                    url,
                    namespace,
                    daemon_id,
                    service,
                    settings.generation_ms,
                    returns=False,
                    passing=passing,
                    fires=fires,
                )
                self._threads[url] = SchedulerThread(schedule, self._status)
                self._consumers[url] = {}
            lines = JobLines(tuple(worker.tasks), are_wanted=logs_jobs)
            host = _LocalHost(partial(self._named, url, number), self._ready, self._status, lines)
            self._hosts.append(host)
            self.runtimes.append(WorkerRuntime(worker, service, settings, host))

    def start(self) -> list[asyncio.Task[None]]:
        """-> the lives of the runtimes; one that ends by itself has failed."""
        if not self.runtimes:
            return []
        self._status.start()
        for thread in self._threads.values():
            thread.start()
        self._lives = [asyncio.create_task(runtime.run(), name="upnext-worker") for runtime in self.runtimes]
        return self._lives

    async def drain(self, stop_s: float, now: asyncio.Event) -> list[str]:
        """Until everything is done, `stop_s` have passed or `now` is set. -> ids of the jobs that still ran."""
        force = asyncio.create_task(now.wait(), name="upnext-now")
        drain = asyncio.gather(*(runtime.stop(stop_s) for runtime in self.runtimes))
        await asyncio.wait([drain, force], return_when=asyncio.FIRST_COMPLETED)
        force.cancel()
        if drain.done():
            left = [job for jobs in drain.result() for job in jobs]
        else:
            drain.cancel()
            left = [job for runtime in self.runtimes for job in runtime.running_ids]
            for host in self._hosts:
                host.cut()
            for life in self._lives:
                life.cancel()
        await asyncio.gather(force, drain, return_exceptions=True)
        return left

    async def close(self) -> None:
        for host in self._hosts:
            host.cut()
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        for thread in self._threads.values():
            await asyncio.to_thread(thread.stop)

    def _running(self) -> list[Attempt]:
        return [attempt for runtime in self.runtimes for attempt in runtime.running]

    def _ready(self) -> None:
        self._unready -= 1
        if not self._unready and self._on_ready is not None:
            self._on_ready()

    def _named(self, url: str, number: int, consumer: str) -> None:
        self._consumers[url][number] = consumer
        self._threads[url].alive(set(self._consumers[url].values()))


class _Ready:
    """Calls `on_ready` when each of `parts` is ready."""

    def __init__(self, parts: int, on_ready: Callable[[], None] | None) -> None:
        self._parts, self._on_ready = parts, on_ready

    def one_more(self) -> None:
        self._parts -= 1
        if not self._parts and self._on_ready is not None:
            self._on_ready()


async def _until(work: Coroutine[Any, Any, None], now: asyncio.Event) -> None:
    """Wait for `work`, until `now` is set. Raises what it raises."""
    working = asyncio.create_task(work, name="upnext-drain")
    force = asyncio.create_task(now.wait(), name="upnext-now")
    try:
        await asyncio.wait([working, force], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        force.cancel()
        await asyncio.gather(working, force, return_exceptions=True)


async def run_service(
    service: ServiceSpec,
    *,
    redis_url: str | None,
    namespace: str = "default",
    install_signals: bool = True,
    stop_s: float = STOP_S,
    on_ready: Callable[[], None] | None = None,
    stopping: asyncio.Event | None = None,
    passing: bool = False,
    fires: bool = True,
    front: Front | None = None,
    logs_jobs: bool = False,
) -> list[str]:
    """Run until SIGTERM or SIGINT (with `install_signals`) or `stopping`; drain, `stop_s` at most. -> ids of the jobs that still ran.

    `redis_url` goes before those that workers name. `passing`: what it registers goes when it stops. `fires`: its
    scheduler fires crons. `front` is served beside the workers. `logs_jobs`: each start and end of a job is a line of the log.
    Raises what a runtime raises at boot, and what ends the front.
    """
    loop = asyncio.get_running_loop()
    stopping = stopping or asyncio.Event()
    now = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            now.set()
        stopping.set()

    caught = (signal.SIGTERM, signal.SIGINT) if install_signals else ()
    ready = _Ready(bool(service.workers) + (front is not None), on_ready)
    running = LocalService(service, redis_url, namespace, ready.one_more, passing, fires, logs_jobs)
    stop = asyncio.create_task(stopping.wait(), name="upnext-stopping")
    left: list[str] = []
    lives: list[asyncio.Task[None]] = []
    try:
        for number in caught:
            signals.answer(loop, number, on_signal, number)
        lives = running.start()
        if front is not None:
            lives.append(asyncio.create_task(front.run(ready.one_more), name="upnext-front"))
        await asyncio.wait([*lives, stop], return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            if front is not None:
                await _until(front.drain(), now)
            left = await running.drain(stop_s, now)
        for life in lives:
            if life.done() and not life.cancelled():
                life.result()
        if stopping.is_set() and not now.is_set():
            await asyncio.gather(*lives)
    finally:
        stop.cancel()
        for life in lives:
            life.cancel()
        await asyncio.gather(stop, *lives, return_exceptions=True)
        await running.close()
        for number in caught:
            signals.ignore(loop, number)
    return left
