"""A pool process: runs plain functions of a service, one job at a time, for the worker that exec'd it.

It is started fresh (never forked from a running loop), imports the service once, and gets a task's name and the encoded arguments; what
goes back is the encoded value, or the error as text. It belongs to the worker's session and dies with it.
"""

from __future__ import annotations

import contextvars
import ctypes
import faulthandler
import importlib
import itertools
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import orjson

from upnext.core import own_options
from upnext.core.entry import Meta
from upnext.core.lanes import Lane
from upnext.core.retry import RetryIn, decide
from upnext.core.spec import ServiceSpec, TaskKind, TaskSpec
from upnext.engine import secrets, tracing
from upnext.engine.attempt import CURRENT, Attempt, current_job_id
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.worker import pool_frames
from upnext.engine.worker.failures import is_permanent, text_of, trace_of, type_name
from upnext.engine.worker.lifespan_thread import LifespanThread
from upnext.engine.worker.pool_frames import Kind
from upnext.errors import LifespanError

_PR_SET_PDEATHSIG = 1

serving = False
"""Whether this process is one. A service that starts workers when it is imported must not do so here."""


class Line:
    """The blocking end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._writing = threading.Lock()
        self._arrivals = threading.Condition()
        self._reading = self._gone = False
        self._frames: deque[tuple[Kind, bytes]] = deque()
        self._granted: set[int] = set()
        self._waits = itertools.count()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        with self._writing:
            self._socket.sendall(pool_frames.pack(kind, body))

    def read(self) -> tuple[Kind, bytes] | None:
        """The next frame that is meant for the main thread. None: the worker is gone."""
        self._until(lambda: bool(self._frames))
        return self._frames.popleft() if self._frames else None

    def go_on(self, job: int, *, at_once: bool) -> None:
        """A wait of the job is over; blocks until it has a slot again, unless it goes on `at_once`. From any thread."""
        number = next(self._waits)
        self.send(Kind.UNPARK, b"%d %d %d" % (job, number, at_once))
        if at_once:
            return
        self._until(lambda: number in self._granted)
        if number not in self._granted:
            os._exit(0)
        self._granted.discard(number)

    def _until(self, arrived: Callable[[], bool]) -> None:
        """Return when that is so, or the worker is gone. Whichever thread comes first reads, and sorts what comes for all of them."""
        with self._arrivals:
            while not arrived() and not self._gone:
                if self._reading:
                    self._arrivals.wait()
                    continue
                self._reading = True
                self._arrivals.release()
                try:
                    frame = self._frame()
                finally:
                    self._arrivals.acquire()
                    self._reading = False
                    self._arrivals.notify_all()
                if frame is None:
                    self._gone = True
                elif frame[0] is Kind.GO:
                    self._granted.add(int(frame[1]))
                else:
                    self._frames.append(frame)

    def _frame(self) -> tuple[Kind, bytes] | None:
        head = self._exactly(pool_frames.HEAD.size)
        if head is None:
            return None
        kind, length = pool_frames.read_head(head)
        body = self._exactly(length)
        return None if body is None else (kind, body)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(min(count - len(parts), 1 << 20))
            if not part:
                return None
            parts += part
        return bytes(parts)


class MemberAttempt(Attempt):
    """An attempt that runs here while its slot is kept by the worker: giving the slot back is asked for over the line."""

    __slots__ = ("_line", "_number")

    def __init__(self, spec: TaskSpec, header: dict[str, Any], broker: QueueClient, line: Line) -> None:
        meta = Meta(
            job_id=header["job_id"],
            attempt=header["attempt"],
            crashes=header["crashes"],
            parent_id=header["parent_id"],
            root_id=header["root_id"],
            trace=header["trace"],
            own=header["own"],
        )
        super().__init__(spec, Lane.NORMAL, b"", meta, broker)
        self.started_at = header["started_at"]
        self.state = header["state"]
        self._line, self._number = line, header["number"]

    def note(self, fields: dict[str, Any]) -> None:
        self.state = {**(self.state or {}), **fields}
        self._line.send(Kind.NOTE, b"%d %s" % (self._number, orjson.dumps(fields)))

    @contextmanager
    def parked(self) -> Generator[None]:
        """The slot is free inside; several threads may be in here at once."""
        self._line.send(Kind.PARK, b"%d" % self._number)
        try:
            yield
        except BaseException:
            self._line.go_on(self._number, at_once=True)
            raise
        self._line.go_on(self._number, at_once=False)


def main() -> None:
    """argv: the worker's pid, the descriptor of the line. The rest comes over the line: a URL may hold a password, and argv is public."""
    global serving
    serving = True
    parent, fd = sys.argv[1:3]
    _die_with(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the worker, which lets jobs finish
    faulthandler.enable()
    os.set_inheritable(int(fd), False)
    line = Line(socket.socket(fileno=int(fd)))
    frame = line.read()
    if frame is None:
        os._exit(0)
    setup = orjson.loads(frame[1])
    _title(setup["path"])
    try:
        service = _load(setup["loader"], setup["path"])
    except BaseException as error:  # noqa: BLE001 - an import runs the service's code: whatever it raises is sent to the worker
        line.send(Kind.FAILED, f"{type_name(error)}: {text_of(error)}".encode())
        os._exit(1)
    _log(setup["log_setup"])
    broker = QueueClient(setup["redis_url"], setup["namespace"], name="upnext-pool")
    tasks = _tasks(service)
    # By a task of it: workers without a name of their own can be numbered otherwise here.
    opens = next((one.lifespan for one in service.workers if setup["serves"] in one.tasks), None)
    declared = next((one.secrets for one in service.workers if setup["serves"] in one.tasks), ())
    lifespan = LifespanThread(f"worker {setup['worker']!r}", opens)
    try:
        secrets.open_all(declared, secrets.Sources.of(os.environ))
        broker.lifespan_state = lifespan.enter()
    except LifespanError as error:
        logging.getLogger("upnext.worker").error("%s", error, exc_info=error.__cause__)
        line.send(Kind.FAILED, str(error).encode())
        os._exit(1)
    line.send(Kind.READY)
    while (frame := line.read()) is not None:
        head, _, payload = frame[1].partition(b"\n")
        line.send(*_run(tasks, orjson.loads(head), payload, broker, line))
    lifespan.leave()
    _flush()
    os._exit(0)


def _run(
    tasks: dict[str, TaskSpec], header: dict[str, Any], payload: bytes, broker: QueueClient, line: Line
) -> tuple[Kind, bytes]:
    spec = tasks.get(header["task"])
    if spec is None:
        return _failed(
            None, header, LookupError(f"a pool process found no task {header['task']!r} in the service it imported")
        )
    attempt = MemberAttempt(spec, header, broker, line)
    try:
        lenient = getattr(spec.arguments, "decode_event", None) if spec.kind is TaskKind.EVENT else None
        args, kwargs = (lenient or spec.arguments.decode)(payload)
        context = contextvars.copy_context()
        context.run(CURRENT.set, attempt)
        if header["trace"] is not None:
            context.run(tracing.attach, header["trace"])
        value = context.run(spec.function, *args, **kwargs)
        return Kind.VALUE, b"null" if value is None else spec.arguments.encode_result(value)
    except BaseException as error:  # noqa: BLE001 - the boundary to user code: whatever it raises is the job's end
        return _failed(spec, header, error)
    finally:
        _flush()


def _failed(spec: TaskSpec | None, header: dict[str, Any], error: BaseException) -> tuple[Kind, bytes]:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        error = RuntimeError(f"the task raised {type(error).__name__}: a task can't end its worker")
    delay_s = None
    if spec is not None and not is_permanent(error):
        options = own_options.applied(spec.options, header["own"] or {})
        decision = decide(options, header["attempt"], error, random.Random())
        delay_s = decision.delay_s if isinstance(decision, RetryIn) else None
    record = {"type": type_name(error), "message": text_of(error), "traceback": trace_of(error), "delay_s": delay_s}
    return Kind.ERROR, orjson.dumps(record)


def _load(loader: str, path: str) -> ServiceSpec:
    return _found(loader)(path).spec


def _tasks(service: ServiceSpec) -> dict[str, TaskSpec]:
    return {name: spec for worker in service.workers for name, spec in worker.tasks.items()}


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(0)


def _log(log_setup: str | None) -> None:
    if log_setup is not None:
        _found(log_setup)(current_job_id)
    elif not logging.root.handlers:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _found(path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)


def _title(path: str) -> None:
    import setproctitle  # noqa: PLC0415 - only a process of our own is renamed

    setproctitle.setproctitle(f"upnext pool: {os.path.basename(path)}")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed by the task, or a reader that went away
            continue
