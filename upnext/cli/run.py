"""`upnext run`: services in this one process, for development. A server runs `upnextd`."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from upnext.cli import completing, output
from upnext.cli.options import flags, queue_options
from upnext.control.exits import ExitCode
from upnext.core.counted import counted
from upnext.errors import UsageError

if TYPE_CHECKING:
    from upnext.address import Address
    from upnext.cli.burst import Burst
    from upnext.cli.reloading import Gate
    from upnext.core.spec import ServiceSpec
    from upnext.engine.local import Front

LIFELINE = "UPNEXT_RUN_LIFELINE"
"""Set in a process that `--reload` starts: a descriptor that reads end of file once its parent is gone, and the values of its `Gate`."""


@click.command()
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True, shell_complete=completing.files)
@click.option(
    "--only", "-o", multiple=True, metavar="NAME", help="Only the workers and Apis of this name; may be repeated."
)
@click.option(
    "--service-name", metavar="NAME", help="Name of the service in Redis (UPNEXT_SERVICE; default: its file's)."
)
@click.option(
    "--api-listen",
    multiple=True,
    metavar="NAME=ADDRESS",
    help="Where the Api of this name listens: HOST:PORT or /path.sock; may be repeated.",
)
@click.option("--reload", is_flag=True, help="Start again when a Python file beside the services changes.")
@click.option(
    "--burst",
    is_flag=True,
    help="Run what is queued, with its retries, then end: 1 if a job failed. Fires no cron, waits for no delayed job.",
)
@click.option(
    "--log-level",
    metavar="LEVEL",
    help="debug, info (with a line for each start and end of a job), warning or error (UPNEXT_LOG_LEVEL; default: info).",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more: --log-level debug.")
@queue_options
@click.pass_context
def run(
    ctx: click.Context,
    services: tuple[str, ...],
    only: tuple[str, ...],
    service_name: str | None,
    api_listen: tuple[str, ...],
    reload: bool,
    burst: bool,
    log_level: str | None,
    verbose: bool,
) -> None:
    """Run services (files, or modules as pkg.mod) in this process until Ctrl-C; without any Redis, with a broker of their own."""
    if reload and burst:
        raise UsageError("run: --reload and --burst don't go together")
    if reload and LIFELINE not in os.environ:
        ctx.exit(_keep_running(services))
    from upnext import config, console_log, project
    from upnext.address import parse_named
    from upnext.running import reachable, settle

    env = project.environment(os.environ)
    console_log.install(config.log_level(log_level or ("debug" if verbose else None), env))
    addresses = parse_named("--api-listen", api_listen)
    namespace = config.namespace(flags().namespace, env)
    specs = _load(services, only, config.service_name(service_name, env), addresses)
    lifeline, gate = of_parent()
    if gate is not None and not gate.may_run(alone=any(spec.apis for spec in specs)):
        return
    asked = flags()
    with reachable(specs, env, services[0], name=asked.name, redis_url=asked.redis_url, lifeline=lifeline) as (
        specs,
        passing,
    ):
        settle(specs, asked.redis_url, namespace)
        ctx.exit(_burst(specs, namespace) if burst else _run(specs, namespace, passing))


def _keep_running(services: Sequence[str]) -> int:
    """With --reload, until its end and that of its broker. -> the exit code."""
    from upnext import config, project
    from upnext.cli.reloading import keep_running
    from upnext.embedded import run_broker

    env = project.environment(os.environ)
    code = keep_running(services, LIFELINE)
    with suppress(UsageError):  # a name that no broker can have
        name = config.daemon_name(flags().name, env, services[0])
        run_broker.wait_until_gone(config.state_dir(name, None, env), os.getpid())
    return code


def of_parent() -> tuple[int | None, Gate | None]:
    """The lifeline, and the gate, of a process that `--reload` started."""
    if LIFELINE not in os.environ:
        return None, None
    from upnext.cli.reloading import Gate

    lifeline, loaded, go, apis = map(int, os.environ[LIFELINE].split(","))
    return lifeline, Gate(loaded, go, bool(apis))


def _burst(specs: Sequence[ServiceSpec], namespace: str) -> ExitCode:
    from upnext.cli.burst import Burst

    bursting = Burst(specs, namespace)
    ended = _run(specs, namespace, passing=False, burst=bursting)
    return ended if ended is not ExitCode.OK else ExitCode.FAILED if bursting.failed() else ExitCode.OK


def _load(
    services: Sequence[str], only: Sequence[str], name: str | None, addresses: Mapping[str, Address]
) -> list[ServiceSpec]:
    """Raises ServiceError; with `only`, for a name that is in none of the services. UsageError for one name of several services."""
    from upnext.service import apis_placed, load

    if name is not None and len(services) > 1:
        raise UsageError(
            f"--service-name (UPNEXT_SERVICE) {name!r}: names one service; run each in a process of its own"
        )
    services_loaded = [load(service, name=name) for service in services]
    for service in services_loaded:
        for line in service.warnings:
            output.tell(f"warning: {line}")
        service.prepare()
    loaded = _only([service.spec for service in services_loaded], only)
    apis = [api for spec in loaded for api in spec.apis]
    for unknown in (name for name in addresses if name not in [api.name for api in apis]):
        there = f"there are: {', '.join(api.name for api in apis)}" if apis else "there is none"
        raise UsageError(f"--api-listen: no api is named {unknown!r}; {there}")
    apis_placed(apis, addresses)  # checks them together
    return [replace(spec, apis=apis_placed(spec.apis, addresses)) for spec in loaded]


def _only(loaded: list[ServiceSpec], only: Sequence[str]) -> list[ServiceSpec]:
    from upnext.errors import ServiceError

    if not only:
        return loaded
    names = [one.name for spec in loaded for one in (*spec.workers, *spec.apis)]
    for unknown in (name for name in only if name not in names):
        kinds = "worker or api" if any(spec.apis for spec in loaded) else "worker"
        raise ServiceError(f"no {kinds} is named {unknown!r}; there are: {', '.join(names)}")
    kept = [
        replace(
            spec,
            workers=tuple(worker for worker in spec.workers if worker.name in only),
            declared=spec.workers,
            apis=tuple(api for api in spec.apis if api.name in only),
        )
        for spec in loaded
    ]
    return [spec for spec in kept if spec.workers or spec.apis]


def _run(specs: Sequence[ServiceSpec], namespace: str, passing: bool, burst: Burst | None = None) -> ExitCode:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left = runner.run(_serve(specs, namespace, passing, burst))
    if left is None:
        return ExitCode.OK
    output.tell(f"ended with jobs running, they will run again: {', '.join(left) or 'unknown'}")
    return ExitCode.TIMEOUT


async def _serve(specs: Sequence[ServiceSpec], namespace: str, passing: bool, burst: Burst | None) -> list[str] | None:
    """Until the first SIGINT or SIGTERM, or, with `burst`, until nothing is left to do; a second SIGINT ends it at once.

    -> ids of jobs that still ran, None for a clean end.
    """
    from upnext.engine.local import run_service
    from upnext.running import front_of

    stopping = asyncio.Event()
    fronts = [None if burst else front_of(spec) for spec in specs]
    ready = _Announcement(specs, [front for front in fronts if front is not None])
    lives = [
        asyncio.create_task(
            run_service(
                spec,
                redis_url=None,
                namespace=namespace,
                install_signals=False,
                on_ready=ready.one_more,
                stopping=stopping,
                passing=passing,
                fires=burst is None,
                front=front,
                logs_jobs=True,
            ),
            name=f"upnext {spec.name}",
        )
        for spec, front in zip(specs, fronts, strict=True)
    ]
    _listen(stopping, lives)
    watching = None if burst is None else asyncio.create_task(burst.until_done(stopping), name="upnext-burst")
    try:
        # One that fails ends all: half a set of services is of no use.
        await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
        stopping.set()
        ended = await asyncio.gather(*lives, return_exceptions=True)
    finally:
        for life in lives:
            life.cancel()
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    left: list[str] = []
    for end in ended:
        if isinstance(end, Exception):
            raise end
        if isinstance(end, list):
            left += end
    return left if left or any(isinstance(end, asyncio.CancelledError) for end in ended) else None


class _Announcement:
    """Says that it is ready when every service is."""

    def __init__(self, specs: Sequence[ServiceSpec], fronts: Sequence[Front]) -> None:
        self._fronts = fronts
        self._names = ", ".join(spec.name for spec in specs)
        self._tasks = sum(len(worker.tasks) for spec in specs for worker in spec.workers)
        self._waiting = len(specs)

    def one_more(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            urls = "".join(f", {url}" for front in self._fronts for url in front.urls)
            output.tell(f"{self._names}: {counted(self._tasks, 'task')}{urls}, ready (Ctrl-C ends it)")


def _listen(stopping: asyncio.Event, lives: Sequence[asyncio.Task[list[str]]]) -> None:
    """Signals and the lifeline to the parent, until the loop closes."""

    def asked(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            for life in lives:
                life.cancel()
        elif not stopping.is_set() and sys.stderr.isatty():
            output.tell("finishing running jobs (Ctrl-C again ends at once)")
        stopping.set()

    def alone() -> None:
        loop.remove_reader(lifeline)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    if LIFELINE in os.environ:
        lifeline = int(os.environ[LIFELINE].partition(",")[0])
        loop.add_reader(lifeline, alone)
