"""One Worker's life in a process: register, fetch, run, finish, until it is asked to stop.

`Membership` is who the worker is to the broker, `Fetcher` takes jobs, `Executor` runs them, `Finisher` sends how they ended. This file
joins them and knows the modes; none of them knows this file.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping

from upnext.core.keys import Keys
from upnext.core.spec import ServiceSpec, WorkerSpec
from upnext.engine import secrets
from upnext.engine.attempt import Attempt
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.mode import Mode
from upnext.engine.redis import wakeups
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.preflight import check_broker
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.subscriber import Listener
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.fetcher import Fetcher
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.host import Host
from upnext.engine.worker.lifespan import Lifespan
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.overrunning import Lingering
from upnext.engine.worker.pool import setup_of
from upnext.engine.worker.settings import RuntimeSettings
from upnext.engine.worker.settling import Settling
from upnext.engine.worker.task_run import runs_in_process
from upnext.engine.worker.times import TimesKept
from upnext.engine.worker.unstarted import Unstarted
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, LifespanError

log = logging.getLogger("upnext.worker")

SHORT_TRY_S = 5.0


class WorkerRuntime:
    """Runs the jobs of one Worker. `run()` lasts until `stop()`; the rest may be called from the loop at any time."""

    def __init__(self, worker: WorkerSpec, service: ServiceSpec, settings: RuntimeSettings, host: Host) -> None:
        self._worker, self._service, self._settings, self._host = worker, service, settings, host
        self.keys = Keys(settings.namespace)
        self.mode = Mode.STARTING
        self._mode_after_boot = Mode.RUNNING
        self._broker = QueueClient(settings.redis_url, settings.namespace, name="upnext-worker")
        link = self._broker.link
        self._membership = Membership(self._broker, service, worker, settings, host)
        ttl_ms: Mapping[str, int] = {
            name: round(task.options.result_ttl_s * 1000) for name, task in worker.tasks.items()
        }
        self._times = TimesKept(link, self.keys, self._membership)
        self._finisher = Finisher(link, self.keys, ttl_ms, self._membership, self._times)
        self._settling = Settling(link, self._finisher)
        self._lingering = Lingering(link, self.keys, self._membership)
        pool_setup = None
        if _needs_pool(worker):
            pool_setup = setup_of(service, worker, settings.redis_url, settings.namespace, settings.log_setup)
        self._executor = Executor(
            worker, self._membership, self._finisher, host, random.Random(), self.keys, self._lingering, pool_setup
        )
        self._unstarted = Unstarted(self._broker, self._membership, self._executor, self._finisher)
        self._fetcher = Fetcher(
            self._membership,
            self._settling,
            self._executor,
            self._unstarted,
            self._broker,
            worker,
            host,
            settings.suspects,
            settings.one_at_a_time,
        )
        self._listener = Listener(
            link, "upnext-bell", self.keys, [self.keys.bell], self._on_message, self._fetcher.reread
        )
        self._lifespan = Lifespan(f"worker {worker.name!r}", worker.lifespan)
        self._stopped = asyncio.Event()

    # --- life

    async def run(self) -> None:
        """Live until `stop`.

        Raises BrokerRefusedError, BrokerUnavailableError (not within the boot timeout), ConflictError, LifespanError (SecretError, too).
        """
        cut = True
        try:
            begun = time.monotonic()
            if self._worker.secrets:
                await asyncio.to_thread(secrets.open_all, self._worker.secrets, self._settings.secrets)
            self._broker.lifespan_state = await self._lifespan.enter()
            await self._boot(time.monotonic() - begun)
            await self._serve()
            cut = False
        finally:
            await self._close(cut=cut)

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._fetcher.run(), name="upnext-fetch"),
                    group.create_task(self._settling.run(), name="upnext-follow"),
                    group.create_task(self._lifespan.broken(), name="upnext-lifespan-watch"),
                ]
                await self._stopped.wait()
                for loop in loops:
                    loop.cancel()
        except* LifespanError as broken:
            raise broken.exceptions[0] from broken.exceptions[0].__cause__

    def pause(self) -> None:
        """Stop fetching; what was fetched still runs."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.PAUSED
        elif self.mode is Mode.RUNNING:
            self.mode = Mode.PAUSED
            self._fetcher.allow(False)

    def resume(self) -> None:
        """Reverse pause and drain."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.RUNNING
        elif self.mode in (Mode.PAUSED, Mode.DRAINING):
            self.mode = Mode.RUNNING
            self._fetcher.allow(True)

    async def drain(self) -> None:
        """Fetch no more, hand the unstarted back; return when nothing runs and the broker has confirmed every end."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.DRAINING
        elif self.mode is not Mode.STOPPED:
            self.mode = Mode.DRAINING
            self._fetcher.allow(False)
            await self._fetcher.quiet()
        while self.mode is Mode.DRAINING:
            await self._unstarted.hand_back_held()
            await self._executor.drained()
            await self._finisher.flushed()
            if not self._executor.running and not self._executor.held:
                return

    async def quiet(self) -> None:
        """Return when no fetch is out and none will be; after the beginning of a drain."""
        await self._fetcher.quiet()

    async def stop(self, grace_s: float | None = None) -> list[str]:
        """Drains; when `grace_s` has passed, gives up. -> ids of the jobs that still ran."""
        left: list[str] = []
        try:
            async with asyncio.timeout(grace_s):
                await self.drain()
        except TimeoutError:
            left = [attempt.job_id for attempt in self._executor.running]
        self.mode = Mode.STOPPED
        self._membership.end()
        self._fetcher.allow(False)
        self._stopped.set()
        return left

    @property
    def consumer(self) -> str:
        """The name under which this worker is registered, empty before that."""
        return self._membership.consumer

    @property
    def epoch(self) -> str:
        """The broker's data in which it is."""
        return self._membership.epoch

    def lost_registration(self, reason: str) -> None:
        """Register under a new name: this worker was declared dead."""
        self._membership.lost(reason)

    @property
    def running_ids(self) -> list[str]:
        return [attempt.job_id for attempt in self._executor.running]

    @property
    def running(self) -> list[Attempt]:
        return list(self._executor.running)

    async def _close(self, *, cut: bool) -> None:
        self.mode = Mode.STOPPED
        self._membership.end()
        await self._executor.aclose()
        if self.consumer and self._broker.link.live is not None:
            try:
                async with asyncio.timeout(2):
                    await self._fetcher.end_read()  # else it could be fed a job after the consumer is gone
                    await self._finisher.flushed()
                    if not self._lingering:  # else its consumer is to be reaped when this process is really gone
                        await self._membership.leave()
            except (TimeoutError, BrokerUnavailableError, ReplyError) as error:
                log.debug("no goodbye: %s", error)  # the lease ends by itself, then others take over
        await self._lifespan.leave(cut=cut)
        await self._membership.aclose()
        await self._times.aclose()
        await self._finisher.aclose()
        await self._lingering.aclose()
        await self._fetcher.aclose()
        await self._listener.aclose()
        await self._broker.aclose()

    # --- the start

    async def _boot(self, spent_s: float) -> None:
        limit_s = self._settings.boot_timeout_s
        # What the lifespan took is taken off, down to a short try: both have to fit in what a child has to get ready.
        left_s = None if limit_s is None else max(min(limit_s, SHORT_TRY_S), limit_s - spent_s)
        deadline = None if left_s is None else time.monotonic() + left_s
        backoff = Backoff()
        while True:
            try:
                left = None if deadline is None else max(0.05, deadline - time.monotonic())
                async with asyncio.timeout(left):
                    await self._broker.link.wire()
                    self._settling.life = await check_broker(self._broker.link, self.keys)
                    await self._listener.start()
                    await self._fetcher.connect()
                    await self._membership.register()
                break
            except BrokerRefusedError:
                raise
            except (BrokerUnavailableError, TimeoutError) as error:
                if deadline is not None and time.monotonic() >= deadline:
                    if isinstance(error, BrokerUnavailableError):
                        raise
                    where = self._broker.endpoint.describe()
                    raise BrokerUnavailableError(
                        f"Redis at {where} did not answer within {self._settings.boot_timeout_s:g} s"
                    ) from None
            await backoff.sleep()
        self.mode = self._mode_after_boot
        self._fetcher.allow(self.mode is Mode.RUNNING)

    # --- what happens around

    def _on_message(self, _channel: str, data: bytes) -> None:
        match wakeups.parse(data):
            case (wakeups.Word.BACK, _):
                self._fetcher.wake_for_all()
            case (wakeups.Word.TASK, task):
                if task in self._worker.tasks:
                    self._fetcher.wake()
            case (wakeups.Word.PLANS, _):
                self._fetcher.reread()
            case (wakeups.Word.CANCEL, job_id):
                self._unstarted.cancel(job_id)
            case _:
                pass


def _needs_pool(worker: WorkerSpec) -> bool:
    return any(runs_in_process(task, worker.sync_executor) for task in worker.tasks.values())
