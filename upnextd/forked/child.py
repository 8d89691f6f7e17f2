"""A child: what runs in a process that the template forked. Its own session, its own event loop, one line to the supervisor.

Here it moves in, and gets what its role needs of the engine and of the user's code; `worker_child`, `api_child` and `scheduler_child` are
the roles.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import uvloop

import upnext
from upnext.core.suspects import OneAtATime, Suspects
from upnext.engine.attempt import current_job_id
from upnext.engine.client import per_loop
from upnext.engine.scheduler.scheduler import Scheduler, SchedulerSettings
from upnext.engine.worker.runtime import WorkerRuntime
from upnext.engine.worker.settings import RuntimeSettings
from upnextd.forked import prints
from upnextd.forked.api_child import ApiChild
from upnextd.forked.scheduler_child import SchedulerChild
from upnextd.forked.template import title
from upnextd.forked.worker_child import Runtime, WorkerChild, WorkerHost
from upnextd.shared import api_meters, scoreboard
from upnextd.shared.messages import Assignment
from upnextd.shared.scoreboard import WorkerShape, Writer


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a child is given: the line to the supervisor, its scoreboard page, where stacks go, where output goes."""

    channel: int
    page: int
    dump: int
    output: int
    listener: int = -1
    """Of a child that serves an Api: where it takes connections."""


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
