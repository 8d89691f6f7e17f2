"""`upnextd check`: imports the service in a process of its own and prints what it declares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from upnext.control.exits import ExitCode
from upnext.core.visible import visible
from upnext.errors import SecretError
from upnextd.forked import opened, template
from upnextd.shared import process
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.generations import ImportFailure

_FINE, _REPORTED, _UNWRITTEN = 113, 114, 115
"""What the process ends with when it came to its end, for an import may end it with any code."""


def check(
    service: str, only: Sequence[str], env: Mapping[str, str], *, with_secrets: bool = False
) -> tuple[ExitCode, str | None]:
    """-> the exit code, and a line where the process could not say one itself. `with_secrets`: reads the declared ones, too."""
    argv = process.python_argv("upnextd.check:main", "secrets" if with_secrets else "", service, *only)
    done = subprocess.run(argv, check=False, env=dict(env))
    if done.returncode == _FINE:
        return ExitCode.OK, None
    if done.returncode == _REPORTED:
        return ExitCode.CONFIG, None
    if done.returncode == _UNWRITTEN:
        return ExitCode.FAILED, "what the service declares can't be written"
    return ExitCode.CONFIG, ImportFailure.by_end(ExitStatus.of(done.returncode)).line_for(service)


def main() -> None:
    """Argv: "secrets" or nothing, SERVICE, ONLY…"""
    with_secrets, service, only = sys.argv[1], sys.argv[2], sys.argv[3:]
    # The service may do to the streams what it likes.
    out, err = os.dup(1), os.dup(2)
    before = opened.descriptors()
    try:
        loaded = template.load(service, only)
        template.check_line(before, err)
        warnings = [*loaded.warnings, *template.check_forkable(before)]
    except BaseException as error:  # noqa: BLE001 - whatever an import can raise, SystemExit too, is the service's failure to import
        template.check_line(before, err)
        _say(err, f"upnextd: {ImportFailure(template.failure(error).line).line_for(service)}")
        _end(_REPORTED)
    for warning in warnings:
        _say(err, f"upnextd: warning: {warning}")
    for line in template.nothing_to_do(loaded):
        _say(err, f"upnextd: {line}")
        _end(_REPORTED)
    template.flush()
    for line in describe(loaded.spec):
        _say(out, line)
    if with_secrets and not _read_secrets(loaded.spec, out, err):
        _end(_REPORTED)
    _end(_FINE)


def _read_secrets(spec: Any, out: int, err: int) -> bool:
    """Say where each declared secret comes from, or why it can't be had; whether all can."""
    from upnext.engine import secrets  # noqa: PLC0415 - the daemon imports this module, and knows no engine

    sources, fine = secrets.Sources.of(os.environ), True
    for name in sorted({name for one in (*spec.workers, *spec.apis) for name in one.secrets}):
        try:
            _say(out, f"secret {name}: {secrets.read(name, sources).source}")
        except SecretError as error:
            _say(err, f"upnextd: {error}")
            fine = False
    return fine


def describe(spec: Any) -> list[str]:
    """The service's name, and one line for each worker, task, cron, handler and Api."""
    lines = [f"service {spec.name}"]
    for worker in spec.workers:
        lines.append(f"worker {worker.name} (concurrency {worker.concurrency})")
        for task in worker.tasks.values():
            detail = ""
            if task.cron is not None:
                detail = f"  [{task.cron.schedule} {task.cron.timezone}]"
            elif task.event is not None:
                detail = f"  [on {task.event}]"
            lines.append(f"  {task.kind:<5} {task.arguments.describe()}{detail}")
    lines += [f"api {api.name} at {api.address.url} (processes {api.processes})" for api in spec.apis]
    return lines


def _say(fd: int, line: str) -> None:
    try:
        os.write(fd, f"{visible(line)}\n".encode("utf-8", "replace"))
    except BrokenPipeError:
        return  # the reader has enough
    except OSError:
        _end(_UNWRITTEN)


def _end(code: int) -> NoReturn:
    template.flush()
    # Threads that the service started must not hold the process.
    os._exit(code)
