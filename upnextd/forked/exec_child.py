"""A child that was exec'd, with --no-preload: it imports the service for itself, and is from then on as any other child.

Nothing is shared, so the service may leave threads and connections behind; and nothing is shared, so it costs an import and its memory
each. Light at its top: the supervisor imports it for the numbers.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
from typing import Any

from upnext.errors import UsageError
from upnextd.forked import endings
from upnextd.shared import messages, process
from upnextd.shared.messages import BootFailed, ExecOrder, ImportFailed, MessageError, Shape

CHANNEL_FD, PAGE_FD, DUMP_FD, LISTENER_FD = 3, 4, 5, 6
_CONFIG = 78


def main() -> None:
    """Entry of the exec'd process; the order is on stdin, as JSON."""
    with open(0, "rb", closefd=False) as stdin:
        raw = stdin.read()
    # An operator may ask where its import is.
    faulthandler.register(signal.SIGUSR2, DUMP_FD, all_threads=True, chain=False)
    code = 1
    template = None
    try:
        order = _read(raw)
        process.die_with_parent(order.template.supervisor_pid)
        process.enter(order.template.directory)
        template = importlib.import_module("upnextd.forked.template")
        assignment = order.assignment
        template.title(f"{assignment.name}: {assignment.slot} g{assignment.generation}")
        loaded = _load(template, order)
        child = importlib.import_module("upnextd.forked.child")
        listener = (LISTENER_FD,) if assignment.api else ()
        fds = child.Descriptors(CHANNEL_FD, PAGE_FD, DUMP_FD, os.dup(1), *listener)
        code = child.run(loaded, assignment, fds)
        if code == 0:
            endings.run_handlers()
    except BaseException as error:  # noqa: BLE001 - whatever an import can raise, SystemExit too, is the service's failure to import
        template = template or importlib.import_module("upnextd.forked.template")
        _say_why(template.failure(error))
        code = _CONFIG
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _read(raw: bytes) -> ExecOrder:
    try:
        return messages.decode_order(ExecOrder, raw)
    except MessageError as error:
        raise UsageError(str(error)) from None


def _load(template: Any, order: ExecOrder) -> Any:
    loaded = template.load(order.template.service, order.template.only)
    shapes = tuple(
        Shape(name=worker.name, concurrency=worker.concurrency, tasks=tuple(worker.tasks))
        for worker in loaded.spec.workers
    )
    if shapes != order.shapes:
        raise RuntimeError(
            f"the service declares other workers or tasks than generation {order.template.generation} did: reload, to take in the new code"
        )
    return loaded


def _say_why(failure: ImportFailed) -> None:
    if failure.traceback:
        sys.stderr.write(failure.traceback)
    os.write(CHANNEL_FD, messages.encode(BootFailed(code=_CONFIG, line=failure.line)) + b"\n")
