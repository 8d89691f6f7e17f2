"""Who a worker is to the broker: the name of its consumer, and the epoch of the data in which it is registered.

Everything that a worker writes names both. They change together: when a scheduler declares this consumer dead, or when the broker's data is
replaced, nothing of the old name belongs to this worker, and it registers under a new one: `lost` begins that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable

import orjson

from upnext.core.ownership import Source
from upnext.core.spec import ServiceSpec, WorkerSpec
from upnext.engine.calls import lease
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.contexts import shared_task
from upnext.engine.redis.backoff import Backoff
from upnext.engine.redis.replies import ReplyError
from upnext.engine.redis.scripts import run_calls
from upnext.engine.worker.host import Host
from upnext.engine.worker.settings import RuntimeSettings
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, ConflictError, QueueError

log = logging.getLogger("upnext.worker")

LEASE_MS = 10_000
"""A consumer whose lease is not renewed for this time may be reaped."""


class Membership:
    """Belongs to one runtime and one loop; knows none of the actors that use it.

    `consumer` and `epoch` are empty until `register` has returned. `client_id` is the connection that a reaper of this consumer cuts.
    """

    def __init__(
        self, broker: QueueClient, service: ServiceSpec, worker: WorkerSpec, settings: RuntimeSettings, host: Host
    ) -> None:
        self._broker, self._keys, self._host = broker, broker.keys, host
        self._service, self._worker, self._settings = service, worker, settings
        self.consumer = ""
        self.epoch = ""
        self.client_id = 0
        self.server_offset_s = 0.0
        """The server's clock minus the clock of this host."""
        self._registered = asyncio.Event()
        self._registering: asyncio.Task[None] | None = None
        self._ending = False
        self._on_lost: list[Callable[[bool], None]] = []
        self._on_registered_anew: list[Callable[[], None]] = []

    def watch(
        self, *, lost: Callable[[bool], None] | None = None, registered_anew: Callable[[], None] | None = None
    ) -> None:
        """Call `lost(reaped)` when the registration is lost, and `registered_anew()` when the next one is made, in the order of `watch`.

        `reaped`: other workers have the jobs that run here.
        """
        if lost is not None:
            self._on_lost.append(lost)
        if registered_anew is not None:
            self._on_registered_anew.append(registered_anew)

    @property
    def registered(self) -> bool:
        return self._registered.is_set()

    async def wait_registered(self) -> None:
        await self._registered.wait()

    def saw_server_time(self, server_ms: int) -> None:
        """Measure the server's clock by a reply that arrives now."""
        self.server_offset_s = server_ms / 1000 - time.time()

    # --- registering

    async def register(self) -> None:
        """Register under a new name. Raises ConflictError, BrokerRefusedError (data of a newer version), and what a call raises."""
        consumer = f"{self._settings.host_name}.{os.getpid()}.{secrets.token_hex(5)}"
        self._host.consumer(consumer)
        await self._register_as(consumer)

    async def _register_as(self, consumer: str) -> None:
        parts = lease.register_by_parts(self._keys, self._registration(consumer), secrets.token_hex(8))
        try:
            epoch, server_ms = await run_calls(parts, self._broker.run)
        except ReplyError as error:
            if error.code == "CONFLICT":
                raise ConflictError(self._conflict(str(error))) from None
            if error.code == "SCHEMA":
                raise BrokerRefusedError(
                    "the data in Redis was written by a newer version of upnext: upgrade this one"
                ) from None
            raise
        self.consumer, self.epoch = consumer, epoch
        self.saw_server_time(server_ms)
        self._registered.set()

    def _registration(self, consumer: str) -> lease.Registration:
        settings = self._settings
        record = {
            "daemon": settings.daemon_id,
            **settings.place,
            "host": settings.host_name,
            "pid": os.getpid(),
            "service": self._service.name,
            "worker": self._worker.name,
            "concurrency": self._worker.concurrency,
            "tasks": list(self._worker.tasks),
            "since_ms": time.time_ns() // 1_000_000,
            "client_id": self.client_id,
        }
        return lease.Registration(
            consumer,
            record,
            self._service.name,
            settings.generation_ms,
            LEASE_MS,
            list(self._worker.tasks.values()),
            settings.provisional,
            Source(settings.daemon_id, settings.host_name, self._service.file, settings.returns, settings.passing),
        )

    def _conflict(self, reply: str) -> str:
        """One line: which task, both files, where the other runs, and the ways out."""
        other = orjson.loads(reply.partition(" ")[2])
        ours = f"{self._service.file or 'this process'} (service {self._service.name}, host {self._settings.host_name})"
        theirs = f"{other['file'] or 'another file'} (service {other['service']}, host {other['host'] or 'unknown'})"
        return (
            f"task {other['task']!r} of {ours} is also a task of {theirs}, which is running, in another file or with another signature:"
            " rename one of the two (name=), give both one --service-name if they are one service, or declare both shared=True"
        )

    async def record_connection(self, client_id: int) -> None:
        """Name the connection that a reaper has to cut. Raises ReapedError when this consumer has been reaped."""
        await self._broker.run(lease.attach(self._keys, self.epoch, self.consumer, client_id))
        self.client_id = client_id

    # --- losing it

    def lost(self, reason: str) -> None:
        """Drop the name and register under a new one, in the background. `reason` is the broker's reply: REAPED, EPOCH, NOLEASE …"""
        if self._registering is not None or self._ending:
            return
        log.warning("registering anew: %s", reason)
        self._registered.clear()
        for react in self._on_lost:
            react(reason.startswith("REAPED"))
        self._registering = shared_task(self._register_again(), "upnext-register")

    async def mend(self) -> None:
        """Make removed streams and groups anew, under the same name, for everything else that this worker holds is still its own."""
        epoch = await self._broker.link.command("GET", self._keys.epoch)
        score = await self._broker.link.command("ZSCORE", self._keys.leases, self.consumer)
        if epoch != self.epoch.encode() or score is None:
            self.lost("EPOCH the broker's data has changed")
        else:
            log.warning("a stream or its consumer group was removed: made anew")
            await self._register_as(self.consumer)

    async def _register_again(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self.register()
                break
            except BrokerUnavailableError as error:
                log.debug("registering: %s", error)
            except (ConflictError, QueueError) as error:  # a full broker, too: it may have room again
                log.error("can't register: %s", error)
            await backoff.sleep()
        self._registering = None
        log.info("registered anew as %s", self.consumer)
        for react in self._on_registered_anew:
            react()

    # --- the end

    async def leave(self) -> None:
        """Remove the consumer; what it had fetched and not started goes to other workers."""
        tasks = list(self._worker.tasks)
        parts = lease.reap_parts(tasks)
        while parts:
            more = len(parts) > 1
            call = lease.reap(
                self._keys, self.epoch, consumer=self.consumer, tasks=parts[0], final=True, more=more, cause="stopped"
            )
            if not (await self._broker.run(call)).pending:
                parts.popleft()

    def end(self) -> None:
        """From now on a lost registration is not replaced."""
        self._ending = True

    async def aclose(self) -> None:
        self.end()
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.gather(self._registering, return_exceptions=True)
