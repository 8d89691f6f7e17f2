"""The supervisor's side of a template: exec it, hear of its import, order forks."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import orjson

from upnextd import process
from upnextd.logs import LineReader
from upnextd.process import ExitStatus
from upnextd.scoreboard import WorkerShape
from upnextd.template import CONTROL_FD

_MESSAGE_CAP_BYTES = 1 << 18
_TAIL_LINES = 60


class Phase(Enum):
    """Where a template is in its life."""

    IMPORTING = "importing"
    READY = "ready"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ImportFailure:
    """Why a template has no service: one line, and the traceback where there is one."""

    line: str
    traceback: str = ""


class Listener(Protocol):
    """Who is told what a template says."""

    def imported(self, generation: Generation) -> None: ...
    def import_failed(self, generation: Generation, failure: ImportFailure) -> None: ...
    def forked(self, token: int, pid: int) -> None: ...
    def fork_failed(self, token: int, error: str) -> None: ...
    def template_gone(self, generation: Generation, status: ExitStatus) -> None: ...


class Generation:
    """One template process and what it said of the service. After `GONE` its number is forked from no more."""

    def __init__(
        self,
        number: int,
        order: Mapping[str, Any],
        env: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        on_line: Callable[[int | None, str], None],
    ) -> None:
        """Execs the template. Raises OSError."""
        self.number = number
        self.phase = Phase.IMPORTING
        self.shapes: tuple[WorkerShape, ...] = ()
        self.redis_urls: tuple[str | None, ...] = ()
        self.failure: ImportFailure | None = None
        self.started_at = loop.time()
        self.made_ms = time.time_ns() // 1_000_000
        """When its code was loaded, Unix ms: definitions of a newer generation win over older ones."""
        self.warnings: list[str] = []
        self.retired = False
        """Nothing is forked from it any more."""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        """Its last lines: what is known of an import that ended without a word."""
        self._listener = listener
        self._loop = loop
        self._on_line = on_line
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, into = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            argv = process.python_argv("upnextd.template:main", orjson.dumps({**order, "generation": number}).decode())
            self.pid = process.spawn(argv, env, {0: null, 1: into, 2: into, CONTROL_FD: theirs.fileno()})
        except OSError:
            ours.close()
            os.close(out)
            raise
        finally:
            theirs.close()
            os.close(into)
            os.close(null)
        self.pidfd = os.pidfd_open(self.pid)
        ours.setblocking(False)
        self._control = ours
        self._output = LineReader(out, loop, self._overhear)
        loop.add_reader(ours.fileno(), self._hear)
        loop.add_reader(self.pidfd, self._ended)

    def fork(self, assignment: Mapping[str, Any], fds: Sequence[int]) -> bool:
        """Order a child; False when the template is gone or doesn't take orders."""
        if self.phase is not Phase.READY:
            return False
        try:
            socket.send_fds(self._control, [orjson.dumps(assignment)], fds)
        except OSError:
            return False
        return True

    def retire(self) -> None:
        """Fork no more, and end it."""
        self.retired = True
        self.kill()

    def kill(self) -> None:
        """End it; `template_gone` follows."""
        if self.phase is not Phase.GONE:
            process.send_signal(self.pidfd, process.signal.SIGKILL)

    def _overhear(self, line: str) -> None:
        self.tail.append(line)
        self._on_line(self.pid, line)

    def _hear(self) -> None:
        while self.phase is not Phase.GONE:
            try:
                data = self._control.recv(_MESSAGE_CAP_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control.fileno())
                return
            self._obey(orjson.loads(data))

    def _obey(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "imported":
                self.shapes = tuple(
                    WorkerShape(w["name"], w["concurrency"], tuple(w["tasks"])) for w in message["workers"]
                )
                self.redis_urls = tuple(w["redis_url"] for w in message["workers"])
                self.phase = Phase.READY
                self.warnings = message["warnings"]
                self._listener.imported(self)
            case "failed":
                self.failure = ImportFailure(message["line"], message["traceback"])
            case "forked":
                self._listener.forked(message["token"], message["pid"])
            case "fork_failed":
                self._listener.fork_failed(message["token"], message["error"])
            case _:
                return

    def _ended(self) -> None:
        self._hear()
        members = process.kill_session(self.pid)
        status = process.reap(self.pidfd)
        if status is None:
            return
        was_importing = self.phase is Phase.IMPORTING
        self.phase = Phase.GONE
        self._loop.remove_reader(self.pidfd)
        self._loop.remove_reader(self._control.fileno())
        os.close(self.pidfd)
        self._control.close()
        if members:
            self._output.close()
        else:
            self._output.drain()
        if was_importing:
            said = f"the process that imports the service ended with {status} before it was done"
            self._listener.import_failed(self, self.failure or ImportFailure(said))
        self._listener.template_gone(self, status)
