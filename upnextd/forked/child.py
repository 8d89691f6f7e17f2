"""A child: what runs in a process that the template forked. Its own session, its own event loop, one line to the supervisor.

The only module of this package that runs the engine and the user's code.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson
import uvloop

import upnext
from upnext.control.exits import ExitCode
from upnext.core.suspects import OneAtATime, Suspects
from upnext.engine import secrets, signals
from upnext.engine.attempt import current_job_id
from upnext.engine.client import per_loop
from upnext.engine.scheduler.scheduler import DeathNotice, Scheduler, SchedulerSettings, Started
from upnext.engine.worker import stacks
from upnext.engine.worker.runtime import WorkerRuntime
from upnext.engine.worker.settings import RuntimeSettings
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, LifespanError, SecretError, UsageError
from upnextd.forked import prints
from upnextd.forked.template import title
from upnextd.shared import api_meters, messages, scoreboard
from upnextd.shared.channel import Channel
from upnextd.shared.messages import Assignment, Message
from upnextd.shared.scoreboard import WorkerShape, Writer

BEAT_S = 0.5
_FAILURES_PER_S = 50
STATUS_WITHIN_S = 5.0
"""A supervisor that does not answer within this time is not reported; the next turn asks again."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a child is given: the line to the supervisor, its scoreboard page, where stacks go, where output goes."""

    channel: int
    page: int
    dump: int
    output: int
    listener: int = -1
    """Of a child that serves an Api: where it takes connections."""


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


def run(loaded: Any, assignment: Assignment, fds: Descriptors) -> int:
    """Be the child that `assignment` says; returns its exit code."""
    _move_in(assignment, fds)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(_live(loaded, assignment, fds))


async def _live(loaded: Any, assignment: Assignment, fds: Descriptors) -> int:
    loop = asyncio.get_running_loop()
    shapes = [WorkerShape(worker.name, worker.concurrency, tuple(worker.tasks)) for worker in loaded.spec.workers]
    if assignment.role == "api":
        shapes = [api_meters.shape(assignment.api, assignment.routes)]
    page = Writer(scoreboard.map_writable(fds.page, shapes), shapes)
    line = socket.socket(fileno=fds.channel)
    line.setblocking(False)
    if assignment.role == "scheduler":
        return await SchedulerChild(assignment, page, line, loop, scheduler_factory(loaded, assignment)).main()
    if assignment.role == "api":
        server = api_server(loaded, assignment, fds.listener, page)
        return await ApiChild(assignment, page, line, loop, server).main()
    return await WorkerChild(assignment, page, line, loop, runtime_factories(loaded, assignment)).main()


def runtime_factories(loaded: Any, assignment: Assignment) -> list[Callable[[WorkerHost], Runtime]]:
    """One maker of a runtime per Worker of the service. A quarantine child runs suspects of crashes and nothing else, one at a time."""
    quarantine = assignment.quarantine
    one_at_a_time = OneAtATime()

    def factory(worker: Any) -> Callable[[WorkerHost], Runtime]:
        settings = RuntimeSettings(
            redis_url=_redis_url(assignment, worker.redis_url),
            namespace=assignment.namespace,
            daemon_id=assignment.daemon_id,
            host_name=socket.gethostname(),
            generation_ms=assignment.generation_ms,
            boot_timeout_s=assignment.boot_timeout_s,
            provisional=assignment.provisional,
            suspects=Suspects.ONLY if quarantine else Suspects.LEAVE,
            one_at_a_time=one_at_a_time,
            place={
                "name": assignment.name,
                "slot": assignment.slot,
                "generation": assignment.generation,
                "version": upnext.__version__,
            },
            log_setup="upnextd.forked.prints:install",
        )
        served = replace(worker, concurrency=1) if quarantine else worker
        return lambda host: WorkerRuntime(served, loaded.spec, settings, host)

    return [factory(worker) for worker in loaded.spec.workers]


def _redis_url(assignment: Assignment, own: str | None) -> str:
    """The flag's, the service's own, or the embedded broker's: the supervisor starts one where there is neither."""
    return assignment.redis_url or own or assignment.embedded_url or ""


def _declared_url(spec: Any) -> str | None:
    """The first Redis that the service itself names."""
    return next((one.redis_url for one in (*spec.workers, *spec.apis) if one.redis_url), None)


def api_server(loaded: Any, assignment: Assignment, listener: int, page: Writer) -> Any:
    """What serves the child's Api and counts its requests in the page; they submit where the workers of this daemon are."""
    rows, meter = api_meters.Rows(assignment.routes), page.meter() if assignment.metered else None

    def seen(route: str, status: int, seconds: float) -> None:
        page.count(status < 500)
        if meter is not None:
            meter.observed(rows.of(route, status), seconds)

    api = next(api for api in loaded.spec.apis if api.name == assignment.api)
    own = api.redis_url or _declared_url(loaded.spec)
    per_loop.settle(per_loop.Home(_redis_url(assignment, None), own, assignment.namespace))
    serving = importlib.import_module("upnext.api_server")  # an extra: only a service with an Api needs it
    return serving.ApiServer(api, socket.socket(fileno=listener), seen)


def scheduler_factory(loaded: Any, assignment: Assignment) -> Callable[[Callable[[str], None]], Any]:
    """A maker of the scheduler."""
    settings = SchedulerSettings(
        redis_url=_redis_url(assignment, _declared_url(loaded.spec)),
        namespace=assignment.namespace,
        daemon_id=assignment.daemon_id,
        service=loaded.spec,
        generation_ms=assignment.generation_ms,
        since_ms=assignment.since_ms,
        since_s=assignment.since_s,
    )
    return lambda on_reaped: Scheduler(settings, on_reaped)


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


class Body:
    """What both kinds of children share: the channel, the heartbeat, signals, the way out."""

    def __init__(
        self, assignment: Assignment, page: Writer, connection: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.assignment = assignment
        self.page = page
        self.loop = loop
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.channel = Channel(connection, loop, self._received, self._orphaned)

    def _received(self, message: Message) -> None:
        if isinstance(message, messages.DescribeTasks):
            text = stacks.describe(asyncio.all_tasks(self.loop))
            self.channel.send(messages.TasksDescribed(number=message.number, text=text))
        else:
            self.on_message(message)

    def on_message(self, message: Message) -> None:
        raise NotImplementedError

    def ask_stop(self, grace_s: float) -> None:
        raise NotImplementedError

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run in the background, kept until it is done."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def must(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """As `own`; its failure ends the process, for what was asked of it will never be answered."""
        task = self.own(work)
        task.add_done_callback(self._check)
        return task

    def _check(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logging.getLogger("upnextd").critical("the child can't go on", exc_info=error)
            sys.stderr.flush()
            os._exit(ExitCode.FAILED)

    def watch_signals(self) -> None:
        signals.answer(self.loop, signal.SIGTERM, lambda: self.ask_stop(self.assignment.stop_timeout_s))
        signals.answer(self.loop, signal.SIGQUIT, lambda: os._exit(ExitCode.OK))

    async def beat(self) -> None:
        """The loop's only steady timer: what else is looked at now and then goes with it."""
        while True:
            self.page.beat()
            self.look_around()
            await asyncio.sleep(BEAT_S)

    def look_around(self) -> None:
        """Called at each beat."""

    def boot_failed(self, error: BaseException) -> int:
        """Say in one line why this child can't start; -> its exit code."""
        code = ExitCode.FAILED
        if isinstance(error, BrokerUnavailableError):
            code = ExitCode.UNAVAILABLE
        elif isinstance(error, UsageError):
            code = ExitCode.CONFIG
        line = " ".join(str(error).split()) or type(error).__name__
        lifespan = isinstance(error, LifespanError)
        named = line if lifespan or code is not ExitCode.FAILED else f"{type(error).__name__}: {line}"
        away = code is ExitCode.UNAVAILABLE and not isinstance(error, BrokerRefusedError)
        self.channel.send(messages.BootFailed(code=int(code), line=named, away=away, lifespan=lifespan))
        if code is ExitCode.FAILED and not isinstance(error, SecretError):  # its line says all
            logging.getLogger("upnextd").error("can't start", exc_info=error)
        return int(code)

    def _orphaned(self) -> None:
        # The supervisor is gone; PDEATHSIG is faster where it works.
        os._exit(ExitCode.FAILED)


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


class ApiChild(Body):
    """Serves one Api. Started paused, it prepares everything and takes connections once it is resumed."""

    def __init__(
        self,
        assignment: Assignment,
        page: Writer,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        server: Any,
    ) -> None:
        """`server` is an `upnext.api_server.ApiServer`."""
        super().__init__(assignment, page, connection, loop)
        self._server = server
        self._may_accept = asyncio.Event()
        self._prepared = False
        self._life: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def main(self) -> int:
        """Until it was ordered to end, or can't go on. -> exit code."""
        self.watch_signals()
        beating = self.must(self.beat())
        if not self.assignment.paused:
            self._may_accept.set()
        self._life = self.own(self._serve())
        ended = self.own(self._ended.wait())
        await asyncio.wait([self._life, ended], return_when=asyncio.FIRST_COMPLETED)
        error = self._life.exception() if self._life.done() and not self._life.cancelled() else None
        if error is None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            code = ExitCode.OK
        elif not self._prepared or isinstance(error, LifespanError):
            code = self.boot_failed(error)
        else:
            logging.getLogger("upnextd").critical("the api failed", exc_info=error)
            code = ExitCode.FAILED
        await self._server.close()
        beating.cancel()
        return code

    async def _serve(self) -> None:
        await self._server.prepare()
        self._prepared = True
        if not self.assignment.paused:
            await self._server.accept()
        read = tuple(messages.SecretRead(name=name, source=source) for name, source in secrets.shown())
        self.channel.send(messages.Ready(paused=self.assignment.paused, secrets=read))
        if self.assignment.paused:
            await self._may_accept.wait()
            await self._server.accept()
        await self._server.broken()

    def on_message(self, message: Message) -> None:
        match message:
            case messages.Resume():
                self._may_accept.set()
            case messages.Stop():
                self.ask_stop(message.grace_s)
            case _:
                return

    def ask_stop(self, grace_s: float) -> None:
        if self.stopping:
            return
        self.stopping = True
        if not self._prepared:
            self._ended.set()
            return
        self.must(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        await self._server.drain(min(grace_s, self._server.api.graceful_timeout_s))
        self.channel.send(messages.Stopped(abandoned=()))
        self._ended.set()


class SchedulerChild(Body):
    """Runs the scheduler and carries death notices and acknowledgements between it and the supervisor."""

    def __init__(
        self,
        assignment: Assignment,
        page: Writer,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[Callable[[str], None]], Any],
    ) -> None:
        super().__init__(assignment, page, connection, loop)
        self._ready = False
        self._last_report: tuple[Any, ...] = ()
        self._alive_known = asyncio.Event()
        self._scheduler = factory(self._reaped)
        self._scheduler.on_lost = self._lost
        self._scheduler.on_leading = self._leading
        self._scheduler.on_renamed = self._renamed
        self._scheduler.on_suspects = self.look_around
        self._scheduler.reports.ask = self._ask_status
        self._asked = 0
        self._status: asyncio.Future[str] | None = None
        self._run: asyncio.Task[None] | None = None

    async def main(self) -> int:
        self.watch_signals()
        beating = self.must(self.beat())
        # Without the list of the living, a fresh scheduler would take them for the dead of an earlier life.
        await self._alive_known.wait()
        self._run = self.own(self._scheduler.run())
        booting = self.must(self._boot())
        await asyncio.wait([self._run])
        beating.cancel()
        booting.cancel()
        if self._run.cancelled() or (error := self._run.exception()) is None:
            return ExitCode.OK
        if not self._ready:
            return self.boot_failed(error)
        logging.getLogger("upnextd").critical("the scheduler failed", exc_info=error)
        return ExitCode.FAILED

    def on_message(self, message: Message) -> None:
        match message:
            case messages.Alive():
                self._scheduler.alive(list(message.consumers))
                self._alive_known.set()
            case messages.Died():
                self._scheduler.died(_notice(message))
            case messages.DaemonStatus():
                if self._status is not None and not self._status.done() and message.number == self._asked:
                    self._status.set_result(message.status)
            case messages.Stop():
                self.ask_stop(message.grace_s)
            case _:
                return

    def ask_stop(self, grace_s: float) -> None:  # noqa: ARG002 - it has nothing to finish
        self.stopping = True
        if not self._ready or self._run is None:
            os._exit(ExitCode.OK)
        self.must(self._scheduler.stop())

    async def _ask_status(self) -> dict[str, Any] | None:
        """What the daemon reports of itself; None when it does not answer."""
        self._asked += 1
        self._status = self.loop.create_future()
        self.channel.send(messages.AskStatus(number=self._asked))
        try:
            async with asyncio.timeout(STATUS_WITHIN_S):
                return orjson.loads(await self._status)
        except TimeoutError:
            return None

    def _lost(self, consumer: str) -> None:
        self.channel.send(messages.LeaseLost(consumer=consumer))

    def _reaped(self, consumer: str) -> None:
        self.channel.send(messages.Reaped(consumer=consumer))

    def _renamed(self, daemon_id: str) -> None:
        self.channel.send(messages.Renamed(daemon_id=daemon_id))

    def _leading(self) -> None:
        if self._ready:
            self.look_around()

    async def _boot(self) -> None:
        """Ready once connected."""
        deadline = self.loop.time() + self.assignment.boot_timeout_s
        while not self._scheduler.connected:
            if self.loop.time() >= deadline:
                late = f"did not answer within {self.assignment.boot_timeout_s:g} s (--boot-timeout)"
                os._exit(self.boot_failed(BrokerUnavailableError(f"Redis at {self._scheduler.where} {late}")))
            await asyncio.sleep(0.01)
        self._ready = True
        self.channel.send(messages.Ready(paused=False))
        self.look_around()

    def look_around(self) -> None:
        """Say what changed."""
        scheduler = self._scheduler
        now = (bool(scheduler.leader), scheduler.epoch, bool(scheduler.connected), bool(scheduler.suspects))
        if now != self._last_report:
            self._last_report = now
            leader, epoch, connected, suspects = now
            self.channel.send(
                messages.SchedulerReport(leader=leader, epoch=epoch, connected=connected, suspects=suspects)
            )


def _notice(death: messages.Died) -> DeathNotice:
    return DeathNotice(
        death.consumer,
        death.cause,
        death.charge,
        tuple(map(_started, death.started)),
        death.detail,
        death.crash,
        death.suspects,
        tuple(map(_started, death.ended)),
    )


def _started(job: messages.StartedJob) -> Started:
    return Started(job.task, job.lane, job.entry_id, job.job_id, job.age_s)


def _stream(stream: Any, fd: int) -> Any:
    """What the service made of a standard stream, line by line; a new one where it closed it."""
    if stream is None or getattr(stream, "closed", False):
        return open(fd, "w", buffering=1, closefd=False)
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
    return stream


def _move_in(assignment: Assignment, fds: Descriptors) -> None:
    os.dup2(fds.output, 1)
    os.dup2(fds.output, 2)
    os.close(fds.output)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)
    for fd in (fds.channel, fds.page, fds.dump):
        os.set_inheritable(fd, False)
    faulthandler.enable(fds.dump)
    faulthandler.register(signal.SIGUSR2, fds.dump, all_threads=True, chain=False)
    gc.enable()
    random.seed()
    prints.install(current_job_id)
    title(f"{assignment.name}: {assignment.slot} g{assignment.generation}")
