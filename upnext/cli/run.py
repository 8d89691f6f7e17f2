"""`upnext run`: services in this one process, for development. A server runs `upnextd`."""

# ruff: noqa: PLC0415 - heavy modules are imported by the commands that need them

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from upnext.cli.options import flags, queue_options
from upnext.control.exits import ExitCode

if TYPE_CHECKING:
    from upnext.core.spec import ServiceSpec

RELOADING = "UPNEXT_RUN_RELOADED"
"""Set in the process that `--reload` starts anew for each change."""


@click.command()
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option("--only", "-o", multiple=True, metavar="NAME", help="Only the workers of this name; may be repeated.")
@click.option("--reload", is_flag=True, help="Start again when a Python file beside the services changes.")
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@queue_options
@click.pass_context
def run(ctx: click.Context, services: tuple[str, ...], only: tuple[str, ...], reload: bool, verbose: bool) -> None:
    """Run services (files, or modules as pkg.mod) in this process until Ctrl-C."""
    if reload and RELOADING not in os.environ:
        from upnext.cli.reloading import keep_running

        ctx.exit(keep_running(services, {**os.environ, RELOADING: "1"}))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from upnext import config

    namespace = config.namespace(flags().namespace, os.environ)
    ctx.exit(_run([_reachable(spec) for spec in _load(services, only)], namespace))


def _load(services: Sequence[str], only: Sequence[str]) -> list[ServiceSpec]:
    """Raises ServiceError; with `only`, for a name that is in none of the services."""
    from upnext.errors import ServiceError
    from upnext.service import load

    loaded = [load(service).spec for service in services]
    if not only:
        return loaded
    names = [worker.name for spec in loaded for worker in spec.workers]
    for unknown in (name for name in only if name not in names):
        raise ServiceError(f"no worker is named {unknown!r}; there are: {', '.join(names)}")
    kept = [replace(spec, workers=tuple(worker for worker in spec.workers if worker.name in only)) for spec in loaded]
    return [spec for spec in kept if spec.workers]


def _reachable(spec: ServiceSpec) -> ServiceSpec:
    """Every worker with the URL that it is to use: flag and environment go before its own."""
    from upnext import config

    asked = flags()
    workers = (
        replace(worker, redis_url=config.redis_url(asked.redis_url, os.environ, worker.redis_url, asked.name).url)
        for worker in spec.workers
    )
    return replace(spec, workers=tuple(workers))


def _run(specs: Sequence[ServiceSpec], namespace: str) -> ExitCode:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left = runner.run(_serve(specs, namespace))
    if left is None:
        return ExitCode.OK
    click.echo(f"upnext: ended with jobs running, they will run again: {', '.join(left) or 'unknown'}", err=True)
    return ExitCode.TIMEOUT


async def _serve(specs: Sequence[ServiceSpec], namespace: str) -> list[str] | None:
    """Until the first SIGINT or SIGTERM; a second SIGINT ends it at once. -> ids of jobs that still ran, None for a clean end."""
    from upnext.engine.local import run_service

    stopping = asyncio.Event()
    waiting = len(specs)

    def ready() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            tasks = sum(len(worker.tasks) for spec in specs for worker in spec.workers)
            click.echo(f"upnext: {', '.join(spec.name for spec in specs)}: {tasks} tasks, ready (Ctrl-C ends it)", err=True)

    lives = [
        asyncio.create_task(
            run_service(spec, redis_url=None, namespace=namespace, install_signals=False, on_ready=ready, stopping=stopping),
            name=f"upnext {spec.name}",
        )
        for spec in specs
    ]

    def asked(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            for life in lives:
                life.cancel()
        elif not stopping.is_set() and sys.stderr.isatty():
            click.echo("upnext: finishing running jobs (Ctrl-C again ends at once)", err=True)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    try:
        # One that fails ends all: half a set of services helps nobody.
        await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
        stopping.set()
        ended = await asyncio.gather(*lives, return_exceptions=True)
    finally:
        for life in lives:
            life.cancel()
    for end in ended:
        if isinstance(end, Exception):
            raise end
    if any(isinstance(end, asyncio.CancelledError) for end in ended):
        return []
    return [job for end in ended if isinstance(end, list) for job in end] or None
