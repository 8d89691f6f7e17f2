"""One Worker's life in a process: register, fetch, run, finish, until it is told to stop.

`Fetcher` takes jobs, `Executor` runs them, `Finisher` tells the broker how they ended; this file joins them and knows the modes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from upnext.core.keys import Keys
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome, encode
from upnext.core.ownership import Source
from upnext.core.spec import ServiceSpec, SyncExecutor, WorkerSpec
from upnext.core.suspects import OneAtATime, Suspects
from upnext.engine.attempt import Attempt
from upnext.engine.calls import lease as lease_calls
from upnext.engine.calls import worker as worker_calls
from upnext.engine.calls.worker import Finish
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.mode import Mode
from upnext.engine.redis import wakeups
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.preflight import check_broker, server_life
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.subscriber import Listener
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.failures import cancelled_end
from upnext.engine.worker.fetcher import Fetcher
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.host import Host
from upnext.engine.worker.overrunning import Lingering
from upnext.engine.worker.pool import setup_of
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, ConflictError, QueueError

log = logging.getLogger("upnext.worker")

LEASE_MS = 10_000
SETTLE_S = 1.5
"""After a start of the server: within this every worker that lives is connected again, and has told what ended there."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """`generation_ms` orders definitions: the newest code's win. `boot_timeout_s` None waits for a broker that is away."""

    redis_url: str
    namespace: str = "default"
    daemon_id: str = "local"
    host_name: str = field(default_factory=socket.gethostname)
    generation_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    boot_timeout_s: float | None = 5.0
    provisional: bool = False
    """The code is on trial: see `keeping.Registration`. Its scheduler defines it once it is committed."""
    returns: bool = True
    """The daemon has the same id after a restart."""
    passing: bool = False
    """The service is being developed: what it registers goes when it stops."""
    suspects: Suspects = Suspects.SHARE
    one_at_a_time: OneAtATime | None = None
    """With Suspects.ONLY, of all runtimes of the process: at most one of them runs a suspect."""
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where this process stands, for people: the daemon's name, slot, generation, version. Part of the consumer's record."""
    log_setup: str | None = None
    """`module:function` that each pool process calls first, with a function that tells the id of the job that runs (None: none does)."""


class WorkerRuntime:
    """Runs the jobs of one Worker. `run()` lasts until `stop()`; the rest may be called from the loop at any time."""

    def __init__(self, worker: WorkerSpec, service: ServiceSpec, settings: RuntimeSettings, host: Host) -> None:
        self._worker, self._service, self._settings, self._host = worker, service, settings, host
        self.keys = Keys(settings.namespace)
        self.mode = Mode.STARTING
        self._mode_after_boot = Mode.RUNNING
        self.consumer = ""
        self.epoch = ""
        self._broker = QueueClient(settings.redis_url, settings.namespace, name="upnext-worker")
        ttl_ms: Mapping[str, int] = {
            name: round(task.options.result_ttl_s * 1000) for name, task in worker.tasks.items()
        }
        self._finisher = Finisher(
            self._broker.link,
            self.keys,
            ttl_ms,
            lambda: self.epoch,
            self._lost_epoch,
            lambda job: cancelled_end(job, self.consumer),
        )
        pool_setup = None
        if _needs_pool(worker):
            pool_setup = setup_of(service, settings.redis_url, settings.namespace, settings.log_setup)
        self._lingering = Lingering(self._broker.link, self.keys, lambda: self.epoch, lambda: self.consumer)
        self._executor = Executor(
            worker,
            lambda: self.consumer,
            self._finisher,
            host,
            self._room,
            random.Random(),
            self.keys,
            self._lingering,
            pool_setup,
        )
        self._fetcher = Fetcher(self, self._executor, self._broker, worker, settings.suspects, settings.one_at_a_time)
        self._listener = Listener(
            self._broker.link, "upnext-bell", self.keys, [self.keys.bell], self._heard, self._fetcher.reread
        )
        self._stopped = asyncio.Event()
        self._registering: asyncio.Task[None] | None = None
        self._registered = asyncio.Event()
        self._server_life = ""
        self._settling = asyncio.Lock()

    # --- life

    async def run(self) -> None:
        """Raises BrokerRefusedError, BrokerUnavailableError (not within the boot timeout), ConflictError; else returns after `stop`."""
        try:
            await self._boot()
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._fetcher.run(), name="upnext-fetch"),
                    group.create_task(self._follow_the_server(), name="upnext-follow"),
                ]
                await self._stopped.wait()
                for loop in loops:
                    loop.cancel()
        finally:
            await self._close()

    def pause(self) -> None:
        """Stops fetching; what was fetched still runs."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.PAUSED
        elif self.mode is Mode.RUNNING:
            self.mode = Mode.PAUSED
            self._fetcher.replan()

    def resume(self) -> None:
        """Reverses pause and drain."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.RUNNING
        elif self.mode in (Mode.PAUSED, Mode.DRAINING):
            self.mode = Mode.RUNNING
            self._fetcher.replan()

    async def drain(self) -> None:
        """Fetches no more, hands the unstarted back; returns when nothing runs and the broker has confirmed every end."""
        if self.mode is Mode.STARTING:
            self._mode_after_boot = Mode.DRAINING
        elif self.mode is not Mode.STOPPED:
            self.mode = Mode.DRAINING
            self._fetcher.replan()
            await self._fetcher.quiet()
        while self.mode is Mode.DRAINING:
            await self._hand_back_held()
            await self._executor.drained()
            await self._finisher.flushed()
            if not self._executor.running and not self._executor.held:
                return

    async def stop(self, grace_s: float | None = None) -> list[str]:
        """Drains; when `grace_s` has passed, gives up. -> ids of the jobs that still ran."""
        left: list[str] = []
        try:
            async with asyncio.timeout(grace_s):
                await self.drain()
        except TimeoutError:
            left = [attempt.job_id for attempt in self._executor.running]
        self.mode = Mode.STOPPED
        self._stopped.set()
        return left

    @property
    def running_ids(self) -> list[str]:
        return [attempt.job_id for attempt in self._executor.running]

    async def _close(self) -> None:
        self.mode = Mode.STOPPED
        await self._executor.aclose()
        if self.consumer and self._broker.link.live is not None:
            try:
                async with asyncio.timeout(2):
                    await self._fetcher.end_read()  # else it could be fed a job after the consumer is gone
                    await self._finisher.flushed()
                    if not self._lingering:  # else its consumer is to be reaped when this process is really gone
                        await self._leave()
            except (TimeoutError, BrokerUnavailableError, ReplyError) as error:
                log.debug("no goodbye: %s", error)  # the lease ends by itself, then others take over
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.gather(self._registering, return_exceptions=True)
        await self._finisher.aclose()
        await self._lingering.aclose()
        await self._fetcher.aclose()
        await self._listener.aclose()
        await self._broker.aclose()

    async def _leave(self) -> None:
        tasks = list(self._worker.tasks)
        gone = False
        while not gone:
            call = lease_calls.reap(
                self.keys, self.epoch, consumer=self.consumer, tasks=tasks, final=True, cause="stopped"
            )
            gone = (await self._broker.run(call)).gone

    # --- registration

    async def _boot(self) -> None:
        deadline = None if self._settings.boot_timeout_s is None else time.monotonic() + self._settings.boot_timeout_s
        backoff = Backoff()
        while True:
            try:
                left = None if deadline is None else max(0.05, deadline - time.monotonic())
                async with asyncio.timeout(left):
                    await self._broker.link.wire()
                    self._server_life = await check_broker(self._broker.link, self.keys)
                    await self._listener.start()
                    await self._fetcher.connect()
                    await self._register()
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

    async def _register(self) -> None:
        consumer = f"{self._settings.host_name}.{os.getpid()}.{secrets.token_hex(5)}"
        self._host.consumer(consumer)
        await self._register_as(consumer)

    async def _register_as(self, consumer: str) -> None:
        record = {
            "daemon": self._settings.daemon_id,
            **self._settings.place,
            "host": self._settings.host_name,
            "pid": os.getpid(),
            "service": self._service.name,
            "worker": self._worker.name,
            "concurrency": self._worker.concurrency,
            "tasks": list(self._worker.tasks),
            "since_ms": time.time_ns() // 1_000_000,
            "client_id": self._fetcher.client_id,
        }
        registration = lease_calls.Registration(
            consumer,
            record,
            self._service.name,
            self._settings.generation_ms,
            LEASE_MS,
            list(self._worker.tasks.values()),
            self._settings.provisional,
            Source(
                self._settings.daemon_id,
                self._settings.host_name,
                self._service.file,
                self._settings.returns,
                self._settings.passing,
            ),
        )
        try:
            epoch, server_ms = await self._broker.run(
                lease_calls.register(self.keys, registration, secrets.token_hex(8))
            )
        except ReplyError as error:
            if error.code == "CONFLICT":
                raise ConflictError(self._conflict(str(error))) from None
            if error.code == "SCHEMA":
                raise BrokerRefusedError(
                    "the data in Redis was written by a newer version of upnext: upgrade this one"
                ) from None
            raise
        self.consumer, self.epoch = consumer, epoch
        self._executor.server_offset_s = server_ms / 1000 - time.time()
        self._registered.set()

    def _conflict(self, reply: str) -> str:
        """One line: which task, both files, where the other runs, and the ways out."""
        other = orjson.loads(reply.partition(" ")[2])
        ours = f"{self._service.file or 'this process'} (service {self._service.name}, host {self._settings.host_name})"
        theirs = f"{other['file'] or 'another file'} (service {other['service']}, host {other['host'] or 'unknown'})"
        return (
            f"task {other['task']!r} of {ours} is also a task of {theirs}, which is running, in another file or with another signature:"
            " rename one of the two (name=), give both one --service-name if they are one service, or declare both shared=True"
        )

    async def mend_groups(self) -> None:
        """Somebody removed a stream or its group by hand: made anew, under the same name, for all else that we hold is still ours."""
        epoch = await self._broker.link.command("GET", self.keys.epoch)
        lease = await self._broker.link.command("ZSCORE", self.keys.leases, self.consumer)
        if epoch != self.epoch.encode() or lease is None:
            self.lost_registration("EPOCH the broker's data has changed")
        else:
            log.warning("a stream or its consumer group was removed: made anew")
            await self._register_as(self.consumer)

    async def settled(self) -> None:
        """Returns when this server may be fetched from. Another server, or the same one started anew, may be of an earlier time.

        Jobs that ended here since then end again, before another worker runs them again; for the same reason others are given time to
        do that.
        """
        async with self._settling:
            life = await server_life(self._broker.link)
            if life == self._server_life:
                return
            count = await self._finisher.finish_again()
            if count:
                log.warning("the broker went back in time: %d job(s) that had ended here were ended again", count)
            await asyncio.sleep(SETTLE_S)
            self._server_life = life

    async def _follow_the_server(self) -> None:
        """A worker that is too busy to fetch settles with a new connection, too."""
        backoff = Backoff()
        while True:
            try:
                wire = await self._broker.link.wire()
                await self.settled()
            except QueueError as error:
                log.debug("settling: %s", error)
                await backoff.sleep()
                continue
            backoff.reset()
            await asyncio.wait([wire.closed])

    async def record_connection(self, consumer: str, client_id: int) -> None:
        """Names the connection that a reaper of `consumer` has to cut. Raises ReapedError when it has been reaped."""
        await self._broker.run(lease_calls.attach(self.keys, self.epoch, consumer, client_id))

    def lost_registration(self, reason: str) -> None:
        """We were declared dead, or the data set is another one: a new name, and nothing of the old is ours."""
        if self._registering is not None or self.mode is Mode.STOPPED:
            return
        log.warning("registering anew: %s", reason)
        self._registered.clear()
        self._executor.held.clear()
        if reason.startswith("REAPED"):
            self._executor.abandon()
        self._registering = asyncio.create_task(self._register_again(), name="upnext-register")

    def _lost_epoch(self) -> None:
        self.lost_registration("EPOCH the broker has another data set")

    async def _register_again(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._register()
                break
            except BrokerUnavailableError as error:
                log.debug("registering: %s", error)
            except (ConflictError, ReplyError) as error:
                log.error("can't register: %s", error)
            await backoff.sleep()
        self._registering = None
        log.info("registered anew as %s", self.consumer)
        self._lingering.tell_again()
        self._fetcher.reread()

    async def registered(self) -> None:
        await self._registered.wait()

    # --- what happens around

    def first_fetch_is_out(self) -> None:
        self._host.ready()

    def _room(self) -> None:
        self._fetcher.room()

    def _heard(self, _channel: str, data: bytes) -> None:
        match wakeups.parse(data):
            case (wakeups.Word.BACK, _):
                self._fetcher.wake_for_all()
            case (wakeups.Word.TASK, task):
                if task in self._worker.tasks:
                    self._fetcher.wake()
            case (wakeups.Word.PLANS, _):
                self._fetcher.reread()
            case (wakeups.Word.CANCEL, job_id):
                self.cancel(job_id)
            case _:
                pass

    def cancel(self, job_id: str) -> None:
        """Ends a job that runs or is held here, as cancelled."""
        if self._executor.cancel(job_id):
            return
        for attempt in self._executor.unheld(lambda attempt, _: attempt.job_id == job_id):
            outcome = Outcome(
                JobStatus.CANCELLED,
                attempt=attempt.attempt,
                crashes=attempt.crashes,
                finished_ms=time.time_ns() // 1_000_000,
                parent_id=attempt.parent_id,
                root_id=attempt.root_id,
                error=ErrorInfo("Cancelled", "cancelled"),
                reason=FailureReason.CANCELLED,
            )
            self._finisher.finish(
                Finish(
                    attempt.spec.name,
                    attempt.lane,
                    attempt.entry_id,
                    JobStatus.CANCELLED,
                    encode(outcome),
                    attempt.meta,
                )
            )
            return
        self._executor.cancel_later(job_id)

    async def hand_back(self, attempts: Sequence[Attempt]) -> None:
        """Gives unstarted jobs up. One whose cancel was asked for meanwhile is nobody's to obey then, so it is cancelled again."""
        jobs = [(attempt.spec.name, attempt.lane, attempt.entry_id) for attempt in attempts]
        await self._broker.run(worker_calls.hand_back(self.keys, self.epoch, jobs))
        ids = [attempt.job_id for attempt in attempts]
        asked = await self._broker.link.command("HMGET", self.keys.cancel, *ids)
        for job_id, at in zip(ids, asked, strict=True):
            if at is not None:
                await self._broker.cancel(job_id)

    async def _hand_back_held(self) -> None:
        held = self._executor.unheld(lambda _attempt, _held_s: True)
        if not held:
            return
        backoff = Backoff()
        while True:
            try:
                await self.hand_back(held)
                return
            except BrokerUnavailableError:
                await backoff.sleep()
            except ReplyError as error:
                self.lost_registration(str(error))
                return

    def known_entries(self) -> set[tuple[str, str, bytes]]:
        """(task, lane, entry id) of all that is held, runs, or ended without confirmation here."""
        attempts = [*self._executor.running, *(item[0] for item in self._executor.held)]
        return {(a.spec.name, a.lane, a.entry_id) for a in attempts} | self._finisher.unconfirmed_entries()

    @property
    def unconfirmed(self) -> int:
        return self._finisher.unconfirmed

    def bury_garbage(self, task: str, lane: str, entry_id: bytes, reason: str) -> None:
        """An entry that is no job: kept as a dead letter, so that it stops coming back and somebody can look at it."""
        log.error("entry %s of %s is not a job (%s): kept as a dead letter", entry_id.decode(), task, reason)
        outcome = Outcome(JobStatus.FAILED, error=ErrorInfo("NotAJob", reason), reason=FailureReason.UNKNOWN)
        self._finisher.finish(Finish(task, lane, entry_id, JobStatus.FAILED, encode(outcome), None, True))


def _needs_pool(worker: WorkerSpec) -> bool:
    return worker.sync_executor is SyncExecutor.PROCESS and any(not task.is_async for task in worker.tasks.values())
