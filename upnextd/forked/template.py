"""The template: a process that imports the service once and forks every child of its generation.

It is exec'd fresh, has no event loop, no threads and no Redis connection, and does one thing at a time: take a fork order from the
supervisor (an `Assignment` and four descriptors over a SOCK_SEQPACKET pair), double-fork, report the child's pid.

    template ── fork ── middle ── fork ── child         middle reports the pid and ends; the supervisor, a subreaper, adopts the child

A process that finds its supervisor gone at any of these steps ends itself.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import setproctitle

from upnext.control.exits import ExitCode
from upnext.errors import UsageError
from upnextd.forked import endings, opened
from upnextd.shared import api_meters, content, messages, pieces, process, scoreboard
from upnextd.shared.messages import (
    Assignment,
    DeclaredApi,
    DeclaredWorker,
    Forked,
    ForkFailed,
    FromTemplate,
    Imported,
    ImportFailed,
    MessageError,
    TemplateOrder,
)

_ORDER_CAP_BYTES = 1 << 16
_ORDER_FDS = 5
_SHARED_MODULES = ("upnextd.forked.child",)
"""What every child needs, the engine with it: imported once, shared by all. By name: the service is imported before them."""
_TRACEBACK_CAP_BYTES = 48 << 10
_REPORTED = 113
"""What the process between template and child ends with once it has reported the fork; a fork hook may end it with any code."""


class UnfitServiceError(Exception):
    """The service's import left something behind that must not be shared by forked children."""


def main() -> None:
    """Entry of the exec'd process; argv[1] is the order as JSON, descriptor 3 the pair."""
    os.set_inheritable(process.TEMPLATE_FD, False)
    control = socket.socket(fileno=process.TEMPLATE_FD)
    try:
        order = messages.decode_order(TemplateOrder, sys.argv[1])
    except MessageError as error:
        _tell(control, ImportFailed(line=str(error)))
        os._exit(ExitCode.CONFIG)
    process.die_with_parent(order.supervisor_pid)
    process.enter(order.directory)
    title(f"{order.name}: template g{order.generation}")
    # Says where an import crashed or hangs; children have their own, so it ends with the import.
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR2, sys.stderr, all_threads=True, chain=False)
    before = opened.descriptors()
    try:
        with content.recording(order.service) as loaded:
            service = load(order.service, order.only)
        check_line(before, process.TEMPLATE_FD)
        apis = declared_apis(service, order.api_listen)
        warnings = [
            *service.warnings,
            *nothing_to_do(service),
            *(check_forkable(before) if order.preload else []),
        ]
    except BaseException as error:  # noqa: BLE001 - whatever an import can raise, SystemExit too, is the service's failure to import
        flush()
        check_line(before, process.TEMPLATE_FD)
        _tell(control, failure(error))
        os._exit(ExitCode.CONFIG)
    if not order.preload:
        # It was asked what the service is; children import it for themselves.
        flush()
        _tell(control, describe(service, warnings, loaded.digest(), apis))
        os._exit(ExitCode.OK)
    faulthandler.unregister(signal.SIGUSR2)
    faulthandler.disable()
    # What the service did to them is undone: where SIGCHLD is ignored, no end of a forked process is ever reported.
    process.default_signals()
    # And what it closed: a child's own descriptors would get those numbers, and go when stdin, stdout and stderr are made.
    process.fill_standard_descriptors()
    child = importlib.import_module("upnextd.forked.child")
    gc.collect()
    gc.freeze()
    _tell(control, describe(service, warnings, loaded.digest(), apis))
    while (received := _next_order(control)) is not None:
        fork_child(control, order, received, child, service)
    os._exit(ExitCode.OK)


def load(service: str, only: Sequence[str]) -> Any:
    """Import the service and whatever children need, so that they share it."""
    name = importlib.import_module("upnext.config").service_name(None, os.environ)
    loaded = importlib.import_module("upnext.service").load(service, only=only, name=name)
    loaded.prepare()
    for shared in _SHARED_MODULES:
        importlib.import_module(shared)
    importlib.import_module("upnext.engine.redis.scripts").load_all()
    return loaded


def describe(loaded: Any, warnings: Sequence[str], content_digest: str, apis: tuple[DeclaredApi, ...] = ()) -> Imported:
    """What the supervisor has to know of the service."""
    spec = loaded.spec
    return Imported(
        layout=scoreboard.LAYOUT,
        name=spec.name,
        workers=tuple(
            DeclaredWorker(
                name=worker.name,
                concurrency=worker.concurrency,
                tasks=tuple(worker.tasks),
                redis_url=worker.redis_url,
            )
            for worker in spec.workers
        ),
        warnings=tuple(warnings),
        content=content_digest,
        apis=apis,
    )


def declared_apis(loaded: Any, listen: Sequence[str]) -> tuple[DeclaredApi, ...]:
    """The service's Apis, each with the IP address where it listens; `listen` has `NAME=ADDRESS` for some.

    Raises UsageError, ListenError.
    """
    specs = loaded.spec.apis
    given = importlib.import_module("upnext.address").parse_named("--api-listen", listen)
    if unknown := sorted(given.keys() - {api.name for api in specs}):
        there = f"there are: {', '.join(api.name for api in specs)}" if specs else "there is none"
        raise UsageError(f"--api-listen: no api is named {unknown[0]!r}; {there}")
    if not specs:
        return ()
    # Imported here, shared by all children: what serves them is large.
    routes_of = importlib.import_module("upnext.api_server").routes_of
    resolve = importlib.import_module("upnext.listening").resolve
    found: list[DeclaredApi] = []
    for api in importlib.import_module("upnext.service").apis_placed(specs, given):
        address = resolve(f"api {api.name!r}", api.address)
        found.append(
            DeclaredApi(
                name=api.name,
                host=address.host,
                port=address.port,
                path=address.path,
                processes=api.processes,
                graceful_timeout_s=float(api.graceful_timeout_s),
                routes=routes_of(api.app)[: api_meters.MOST_ROUTES],
                redis_url=api.redis_url,
            )
        )
    return tuple(found)


def nothing_to_do(loaded: Any) -> list[str]:
    """-> a warning for a service whose workers have nothing to run."""
    if loaded.spec.apis or any(worker.tasks for worker in loaded.spec.workers):
        return []
    return [f"{loaded.spec.name} declares no task, cron or event handler: its workers have nothing to do"]


def check_line(before: opened.Descriptors, fd: int) -> None:
    """End this process where the import closed `fd`, by which it reports, or opened something else there: LINE_CLOSED says so.

    `before`: the descriptors that were open before the import.
    """
    if not any(one[0] == fd for one in opened.descriptors() & before):
        flush()
        os._exit(process.LINE_CLOSED)


def check_forkable(before: opened.Descriptors) -> list[str]:
    """-> warnings about what forked children would share. Raises UnfitServiceError for Python threads and connections.

    `before`: the descriptors that were open before the import.
    """
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise UnfitServiceError(
            f"importing the service started a thread ({', '.join(others)}), which would not live on in forked children:"
            " start it lazily, in the task that needs it"
        )
    if peers := opened.sockets(before):
        raise UnfitServiceError(
            f"importing the service opened a {', a '.join(peers)}, which all children would share:"
            " connect lazily, in the task that needs it"
        )
    warnings = [
        f"importing the service opened the database {path}, which all children would share: one may corrupt what another"
        " writes; connect lazily, in the task that needs it"
        for path in opened.databases(before)
    ]
    native = process.thread_count() - 1
    if native > 0:
        warnings.append(f"importing the service left {native} native threads; they don't exist in forked children")
    return warnings


def failure(error: BaseException) -> ImportFailed:
    """What to report of an import that failed: one line for the terminal, the traceback for the log."""
    if isinstance(error, UsageError | UnfitServiceError):
        cause = error.__cause__
        explained = cause is None or isinstance(cause, UsageError)
        return ImportFailed(
            line=_bounded(" ".join(str(error).split())),
            traceback="" if explained else _bounded("".join(traceback.format_exception(cause))),
        )
    text = "".join(traceback.format_exception(error))
    last = next((line for line in reversed(text.splitlines()) if line.strip()), repr(error)).strip()
    return ImportFailed(line=_bounded(last[:1000]), traceback=_bounded(text))


def _bounded(text: str) -> str:
    return text.encode("utf-8", "replace")[-_TRACEBACK_CAP_BYTES:].decode("utf-8", "replace")


def fork_child(
    control: socket.socket, order: TemplateOrder, received: tuple[Assignment, list[int]], child: Any, service: Any
) -> None:
    """One double fork. Returns in the template only."""
    assignment, fds = received
    flush()
    template_pid = os.getpid()
    process.block_signals()
    try:
        middle = os.fork()
    except OSError as error:
        process.default_signals()
        _close(fds)
        _tell(control, ForkFailed(token=assignment.token, error=str(error)))
        return
    if middle == 0:
        _middle(control, order, assignment, fds, child, service, template_pid)
    _close(fds)
    _, status = os.waitpid(middle, 0)
    process.default_signals()
    if os.waitstatus_to_exitcode(status) != _REPORTED:
        # It could not report: killed, or ended by a fork hook of the service.
        ended = process.ExitStatus.of(os.waitstatus_to_exitcode(status))
        error = f"the forked process ended at once ({ended})"
        _tell(control, ForkFailed(token=assignment.token, error=error, blameless=False))


def _middle(
    control: socket.socket,
    order: TemplateOrder,
    assignment: Assignment,
    fds: list[int],
    child: Any,
    service: Any,
    template_pid: int,
) -> NoReturn:
    process.die_with_parent(template_pid)
    middle_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _tell(control, ForkFailed(token=assignment.token, error=str(error)))
        os._exit(_REPORTED)
    if pid:
        _tell(control, Forked(token=assignment.token, pid=pid))
        os._exit(_REPORTED)
    code = 1
    try:
        _settle(control, order, middle_pid)
        endings.forget_inherited()
        code = child.run(service, assignment, child.Descriptors(*fds))
        if code == 0:
            endings.run_handlers()
    except BaseException:  # noqa: BLE001 - the last line of a process: nothing above may run the template's own code
        traceback.print_exc()
    finally:
        flush()
        os._exit(code)
    raise AssertionError("unreachable")


def _settle(control: socket.socket, order: TemplateOrder, middle_pid: int) -> None:
    """From a copy of the template to a child of the supervisor."""
    process.await_adoption(order.supervisor_pid, middle_pid)
    process.die_with_parent(order.supervisor_pid)
    os.setsid()
    control.close()
    process.default_signals()


def title(text: str) -> None:
    setproctitle.setproctitle(f"upnextd {text}")


def _next_order(control: socket.socket) -> tuple[Assignment, list[int]] | None:
    """The next order with its descriptors; None when the supervisor closed the pair."""
    data, fds, flags, _ = socket.recv_fds(control, _ORDER_CAP_BYTES, _ORDER_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    if flags & socket.MSG_CTRUNC:
        raise RuntimeError("an order came without all of its descriptors: this process has too many open")
    return (messages.decode_order(Assignment, data), list(fds)) if data else None


def _tell(control: socket.socket, message: FromTemplate) -> None:
    try:
        for packet in pieces.split(messages.encode(message)):
            control.send(packet)
    except OSError:
        # The supervisor is gone, and PDEATHSIG is on its way.
        os._exit(0)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def flush() -> None:
    """What was printed is written, where it still can be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
