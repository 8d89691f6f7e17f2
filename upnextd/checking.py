"""`upnextd check`: imports the service in a process of its own and prints what it declares."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from upnext.control.exits import ExitCode
from upnextd import template
from upnextd.generations import ImportFailure


def main() -> None:
    """Argv: SERVICE ONLY…; exits 0, or 78 with one line."""
    service, only = sys.argv[1], sys.argv[2:]
    try:
        loaded = template.load(service, only)
        warnings = template.check_forkable()
    except BaseException as error:  # noqa: BLE001 - whatever an import can raise, SystemExit too, is the service's failure to import
        _end(ExitCode.CONFIG, f"upnextd: {ImportFailure(**template.failure(error)).told(service)}")
    for warning in warnings:
        click.echo(f"upnextd: warning: {warning}", err=True)
    for line in describe(loaded.spec):
        click.echo(line)
    _end(ExitCode.OK)


def describe(spec: Any) -> list[str]:
    """One line for each worker, task, cron and handler."""
    lines: list[str] = []
    for worker in spec.workers:
        lines.append(f"worker {worker.name} (concurrency {worker.concurrency})")
        for task in worker.tasks.values():
            detail = ""
            if task.cron is not None:
                detail = f"  [{task.cron.schedule} {task.cron.timezone}]"
            elif task.event is not None:
                detail = f"  [on {task.event}]"
            lines.append(f"  {task.kind:<5} {task.arguments.describe()}{detail}")
    return lines


def _end(code: ExitCode, line: str | None = None) -> NoReturn:
    sys.stdout.flush()
    if line is not None:
        click.echo(line, err=True)
    # Threads that the service started must not hold the process.
    os._exit(code)
