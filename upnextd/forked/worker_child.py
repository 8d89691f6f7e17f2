"""A worker: one runtime of the engine for each Worker of the service, steered by the supervisor's messages."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from upnext.control.exits import ExitCode
from upnext.engine import secrets
from upnext.errors import LifespanError
from upnextd.forked.body import BEAT_S, Body
from upnextd.shared import messages
from upnextd.shared.messages import Assignment, Message
from upnextd.shared.scoreboard import Writer

_FAILURES_PER_S = 50


class Runtime(Protocol):
    """What a worker child needs of the engine: one of these per Worker of the service (`upnext.engine.worker.runtime.WorkerRuntime`)."""

    @property
    def consumer(self) -> str: ...
    async def run(self) -> None: ...
    def lost_registration(self, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def drain(self) -> None: ...
    async def quiet(self) -> None: ...
    async def stop(self, grace_s: float | None) -> list[str]: ...


class WorkerHost:
    """What the runtime reports to the process around it (`upnext.engine.worker.host.Host`), written where the supervisor reads it."""

    def __init__(self, index: int, page: Writer, body: WorkerChild) -> None:
        cells = page.metered_host_of(index) if body.assignment.metered else page.host_of(index)
        # Bound here, so that a job's start costs one call.
        self.started = cells.started
        self.parked = cells.parked
        self.ended = cells.ended
        self.ended_parked = cells.ended_parked
        self._index = index
        self._page = page
        self._body = body

    def consumer(self, consumer: str) -> None:
        self._page.consumer(self._index, consumer)
        self._body.named(self._index, consumer)

    def ready(self) -> None:
        self._body.one_ready(self._index)

    def failed(self, job_id: str, task: str, error: str) -> None:
        self._body.one_failed(messages.JobFailed(job_id=job_id, task=task, error=error))

    def retried(self) -> None:
        self._page.retried()

    def stuck(self, job_id: str, reason: str) -> None:
        self._body.channel.send(messages.Stuck(job_id=job_id, reason=reason))


class WorkerChild(Body):
    """Runs one runtime per Worker and obeys the supervisor."""

    def __init__(
        self,
        assignment: Assignment,
        page: Writer,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        factories: Sequence[Callable[[WorkerHost], Runtime]],
    ) -> None:
        super().__init__(assignment, page, connection, loop)
        self._not_ready = set(range(len(factories)))
        self._failures = (0, 0)
        """The second and how many jobs failed in it."""
        self._runtimes = [factory(WorkerHost(index, page, self)) for index, factory in enumerate(factories)]
        self._runs: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[Any] | None = None

    async def main(self) -> int:
        """Until it was ordered to end, or can't go on. -> exit code."""
        self.watch_signals()
        beating = self.must(self.beat())
        if self.assignment.paused:
            for runtime in self._runtimes:
                runtime.pause()
        self._runs = [self.own(runtime.run()) for runtime in self._runtimes]
        await asyncio.wait(self._runs, return_when=asyncio.FIRST_EXCEPTION)
        beating.cancel()
        failed = next((run for run in self._runs if run.done() and not run.cancelled() and run.exception()), None)
        if failed is None or (self.stopping and self._not_ready):
            await self._settled()
            return ExitCode.OK
        error = failed.exception()
        assert error is not None
        if self._not_ready or isinstance(error, LifespanError):
            return self.boot_failed(error)
        logging.getLogger("upnextd").critical("the worker failed", exc_info=error)
        return ExitCode.FAILED

    def one_failed(self, job: messages.JobFailed) -> None:
        """Sent to the subscribers of events, at most _FAILURES_PER_S; the counters have them all."""
        second = int(self.loop.time())
        if second != self._failures[0]:
            self._failures = (second, 0)
        self._failures = (second, self._failures[1] + 1)
        if self._failures[1] <= _FAILURES_PER_S:
            self.channel.send(job)

    def named(self, worker: int, consumer: str) -> None:
        self.channel.send(messages.ConsumerNamed(worker=worker, consumer=consumer))

    def one_ready(self, worker: int) -> None:
        self._not_ready.discard(worker)
        if self.assignment.paused:
            self._runtimes[worker].pause()
        if not self._not_ready:
            read = tuple(messages.SecretRead(name=name, source=source) for name, source in secrets.shown())
            self.channel.send(messages.Ready(paused=self.assignment.paused, secrets=read))

    def on_message(self, message: Message) -> None:
        match message:
            case messages.Pause():
                self._forget_drain()
                for runtime in self._runtimes:
                    runtime.pause()
            case messages.Resume():
                self._forget_drain()
                for runtime in self._runtimes:
                    runtime.resume()
            case messages.Drain():
                self._forget_drain()
                self._draining = self.must(self._drain(message.number))
            case messages.Stop():
                self.ask_stop(message.grace_s)
            case messages.TakeNewName():
                self._lost(message.consumer)
            case _:
                return

    def ask_stop(self, grace_s: float) -> None:
        if self._not_ready:
            # Nothing runs here yet that could be finished.
            self.stopping = True
            for run in self._runs:
                run.cancel()
            return
        self.stopping = True
        self.must(self._stop(grace_s))

    async def _drain(self, number: int) -> None:
        drains = [runtime.drain() for runtime in self._runtimes]
        await asyncio.gather(*drains, self._report_begun(number))
        self.channel.send(messages.Drained(number=number))

    async def _report_begun(self, number: int) -> None:
        """Only when no fetch is out: the last one may take what is submitted meanwhile."""
        await asyncio.gather(*(runtime.quiet() for runtime in self._runtimes))
        self.channel.send(messages.DrainBegun(number=number))

    def _forget_drain(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None

    async def _stop(self, grace_s: float) -> None:
        self._forget_drain()
        given_up = await asyncio.gather(*(runtime.stop(grace_s) for runtime in self._runtimes))
        self.channel.send(messages.Stopped(abandoned=tuple(job_id for ids in given_up for job_id in ids)))

    async def _settled(self) -> None:
        """Let what the end of the runs left behind be sent."""
        rest = [task for task in self._tasks if not task.done() and task is not asyncio.current_task()]
        if rest:
            await asyncio.wait(rest, timeout=BEAT_S)

    def _lost(self, consumer: str) -> None:
        """The scheduler found this child's lease missing: its runtime must take a new name."""
        for runtime in self._runtimes:
            if runtime.consumer == consumer:
                runtime.lost_registration("REAPED: its lease is missing")
