"""The supervisor's side of a template: exec it, take in its reports, order forks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from signal import SIGKILL
from typing import Any, Protocol, Self

from upnextd.forked import exec_child
from upnextd.shared import messages, process, scoreboard
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import LineReader
from upnextd.shared.messages import Assignment, DeclaredApi, ExecOrder, MessageError, Shape, TemplateOrder
from upnextd.shared.pieces import Joiner
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import WorkerShape

_MESSAGE_CAP_BYTES = 1 << 18
_NO_DESCRIPTOR_S = 0.25
_TAIL_LINES = 60
_Ends = tuple[int, int, int, int]
"""pid, pidfd, our end of the control pair, our end of the output pipe"""


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

    @classmethod
    def by_end(cls, status: ExitStatus) -> Self:
        """Of a process that ended without a report."""
        if status.code == process.LINE_CLOSED:
            return cls(
                "importing the service closed descriptors that it had not opened (os.closerange, say), so that nothing can be"
                " reported any more: close only your own"
            )
        return cls(f"the process that imports the service ended with {status} before it was done")

    def line_for(self, service: str) -> str:
        """The line for people; it names the service once."""
        named = self.line.startswith((f"{service}:", f"{os.path.abspath(service)}:"))
        return f"can't import {self.line}" if named else f"can't import {service}: {self.line}"


class Listener(Protocol):
    """Takes what a template reports."""

    def imported(self, generation: Generation) -> None: ...
    def import_failed(self, generation: Generation, failure: ImportFailure) -> None: ...
    def forked(self, token: int, pid: int) -> None: ...
    def fork_failed(self, token: int, error: str, *, blameless: bool) -> None: ...
    def template_gone(self, generation: Generation, status: ExitStatus) -> None: ...


Declared = tuple[tuple[WorkerShape, ...], tuple[str | None, ...], tuple[DeclaredApi, ...], str]
"""(Workers, the URLs of their queues and the Apis', Apis, the service's name)"""


class Generation:
    """One template process and what it reported of the service. After `GONE`, nothing is forked from it."""

    def __init__(
        self,
        number: int,
        order: TemplateOrder,
        env: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        on_line: Callable[[int | None, str], None],
        kernel: Kernel,
        *,
        preload: bool = True,
        ends: _Ends | None = None,
    ) -> None:
        """Execs the template, or takes over the one with these `ends`. Raises OSError."""
        self.number = number
        self.phase = Phase.IMPORTING
        self.service_name = ""
        self.content = ""
        """Digest of what it loaded of the service's tree; "" before the import is done."""
        self.shapes: tuple[WorkerShape, ...] = ()
        self.redis_urls: tuple[str | None, ...] = ()
        self.apis: tuple[DeclaredApi, ...] = ()
        self.failure: ImportFailure | None = None
        self.started_at = loop.time()
        self._orders: dict[int, float] = {}
        """Fork orders that are not answered yet: token -> when, by the loop's clock."""
        self._answered_at = self.started_at
        self.due_at = float("inf")
        """When its import is to be done, by the loop's clock."""
        self.made_ms = kernel.wall_ms()
        """When its code was loaded, Unix ms: definitions of a newer generation win over older ones."""
        self.warnings: list[str] = []
        self.preload = preload
        """Whether the process stays to fork children. Without, it only reports what the service is; children are exec'd."""
        self.retired = False
        """Nothing is forked from it any more."""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        """Its last lines: what is known of an import that ended without a word."""
        self._joiner = Joiner()
        self._order = order
        self._env = env
        self._kernel = kernel
        self._listener = listener
        self._loop = loop
        self._on_line = on_line
        self.pid, self.pidfd, control, output = self._launch() if ends is None else ends
        self._control = kernel.connection(control)
        self._output = LineReader(output, loop, self._on_output, kernel)
        if self.living:
            loop.add_reader(control, self._receive)
            loop.add_reader(self.pidfd, self._ended)

    def _launch(self) -> _Ends:
        kernel = self._kernel
        ours, theirs = kernel.packet_pair()
        out, into = kernel.pipe()
        null = kernel.null()
        try:
            argv = process.python_argv("upnextd.forked.template:main", messages.encode_order(self._order).decode())
            pid = kernel.spawn(argv, self._env, {0: null, 1: into, 2: into, process.TEMPLATE_FD: theirs})
        except OSError:
            kernel.close(ours)
            kernel.close(out)
            raise
        finally:
            for fd in (theirs, into, null):
                kernel.close(fd)
        return pid, kernel.open_pidfd(pid), ours, out

    @property
    def declared(self) -> Declared:
        """What the service is."""
        return self.shapes, self.redis_urls, self.apis, self.service_name

    @declared.setter
    def declared(self, known: Declared) -> None:
        self.shapes, self.redis_urls, self.apis, self.service_name = known

    def fork(self, assignment: Assignment, fds: Sequence[int]) -> bool:
        """Order a child; False when the template is gone or doesn't take orders."""
        if self.phase is not Phase.READY:
            return False
        if not self.preload:
            return self._exec(assignment, fds)
        try:
            self._kernel.send_with_fds(self._control, messages.encode_order(assignment), fds)
        except OSError:
            return False
        self._orders[assignment.token] = self._loop.time()
        return True

    def stalled_s(self, now: float) -> float:
        """How long it has owed the answer to a fork order; 0 when it owes none. It answers them one after the other."""
        return now - max(min(self._orders.values()), self._answered_at) if self._orders else 0.0

    def forgive(self, late_s: float) -> None:
        """The supervisor itself was stopped for so long: that time doesn't count."""
        self.due_at += late_s
        self._answered_at += late_s

    def _answer(self, token: int) -> None:
        self._orders.pop(token, None)
        self._answered_at = self._loop.time()

    def _exec(self, assignment: Assignment, fds: Sequence[int]) -> bool:
        shapes = tuple(Shape(name=s.name, concurrency=s.concurrency, tasks=s.tasks) for s in self.shapes)
        order = messages.encode_order(ExecOrder(template=self._order, assignment=assignment, shapes=shapes))
        channel, page, dump, output, *listener = fds
        # Not as an argument: a URL may have a password in it.
        order_fd = self._kernel.memory("upnextd-order", len(order), order)
        try:
            argv = process.python_argv("upnextd.forked.exec_child:main")
            where = {
                0: order_fd,
                1: output,
                2: output,
                exec_child.CHANNEL_FD: channel,
                exec_child.PAGE_FD: page,
                exec_child.DUMP_FD: dump,
            }
            if listener:
                where[exec_child.LISTENER_FD] = listener[0]
            pid = self._kernel.spawn(argv, self._env, where)
        except OSError as error:
            why = process.why(error)
            self._loop.call_soon(partial(self._listener.fork_failed, assignment.token, why, blameless=True))
            return True
        finally:
            self._kernel.close(order_fd)
        self._loop.call_soon(self._listener.forked, assignment.token, pid)
        return True

    @property
    def living(self) -> bool:
        """Whether it has a process."""
        return self.pidfd >= 0

    def retire(self) -> None:
        """Fork no more, and end it."""
        self.retired = True
        self.kill()

    def kill(self) -> None:
        """End it; `template_gone` follows."""
        if self.living:
            self._kernel.signal(self.pidfd, SIGKILL)
        elif self.phase is not Phase.GONE:
            self.phase = Phase.GONE
            self._loop.call_soon(self._listener.template_gone, self, ExitStatus(0, None))

    def _on_output(self, line: str) -> None:
        self.tail.append(line)
        self._on_line(self.pid, line)

    def _receive(self) -> None:
        while self.living:
            try:
                data = self._control.recv(_MESSAGE_CAP_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control.fileno())
                return
            message = self._joiner.take(data)
            if message is not None:
                self._on_message(message)

    def _on_message(self, raw: bytes) -> None:
        try:
            message = messages.decode(raw)
        except MessageError as error:
            self._refuse(str(error))
            return
        match message:
            case messages.Imported() if message.layout != scoreboard.LAYOUT:
                self._refuse(
                    "the upnextd that is installed now is another version than this daemon, and their pages of memory differ:"
                    f" {messages.UPGRADE_FIRST}"
                )
            case messages.Imported():
                self.service_name = message.name
                self.content = message.content
                self.shapes = tuple(WorkerShape(w.name, w.concurrency, w.tasks) for w in message.workers)
                self.redis_urls = tuple(one.redis_url for one in (*message.workers, *message.apis))
                self.apis = message.apis
                self.phase = Phase.READY
                self.warnings = list(message.warnings)
                self._listener.imported(self)
            case messages.ImportFailed():
                self.failure = ImportFailure(message.line, message.traceback)
            case messages.Forked():
                self._answer(message.token)
                self._listener.forked(message.token, message.pid)
            case messages.ForkFailed():
                self._answer(message.token)
                self._listener.fork_failed(message.token, message.error, blameless=message.blameless)
            case _:
                return

    def _refuse(self, why: str) -> None:
        """It can't be used: it is of another version of this program."""
        self.failure = ImportFailure(why)
        self._kernel.signal(self.pidfd, SIGKILL)

    # -- over an upgrade of the supervisor --

    def to_state(self, fds: list[int]) -> dict[str, Any]:
        """As JSON; `fds` gets its descriptors."""
        ends = (self.pid, self.pidfd, self._control.fileno(), self._output.fd) if self.living else None
        fds += ends[1:] if ends is not None else ()
        return {
            "order": dataclasses.asdict(self._order),
            "number": self.number,
            "service_name": self.service_name,
            "gone": self.phase is Phase.GONE,
            "ends": ends,
            "shapes": [[shape.name, shape.concurrency, list(shape.tasks)] for shape in self.shapes],
            "redis_urls": self.redis_urls,
            "apis": [dataclasses.asdict(api) for api in self.apis],
            "started_at": self.started_at,
            "made_ms": self.made_ms,
            "warnings": self.warnings,
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        env: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        on_line: Callable[[int | None, str], None],
        kernel: Kernel,
    ) -> Self:
        """What `to_state` wrote, with its descriptors open; it had imported the service."""
        order = messages.from_json(TemplateOrder, state["order"])
        ends = state["ends"]
        if ends is None:
            # It has no process any more; these lead nowhere.
            ours, theirs = kernel.packet_pair()
            out, into = kernel.pipe()
            kernel.close(theirs)
            kernel.close(into)
            ends = (0, -1, ours, out)
        pid, pidfd, control, output = ends
        generation = cls(
            state["number"],
            order,
            env,
            loop,
            listener,
            on_line,
            kernel,
            preload=order.preload,
            ends=(pid, pidfd, control, output),
        )
        generation.service_name = state.get("service_name", "")
        generation.shapes = tuple(WorkerShape(name, most, tuple(tasks)) for name, most, tasks in state["shapes"])
        generation.redis_urls = tuple(state["redis_urls"])
        generation.apis = tuple(messages.from_json(DeclaredApi, api) for api in state["apis"])
        generation.started_at = state["started_at"]
        generation.made_ms = state["made_ms"]
        generation.warnings = list(state["warnings"])
        generation.phase = Phase.GONE if state["gone"] else Phase.READY
        return generation

    def _ended(self) -> None:
        self._receive()
        try:
            members = self._kernel.kill_session(self.pid)
        except OSError:
            # No descriptor is free to read /proc with: until one is, it is not reaped.
            self._loop.remove_reader(self.pidfd)
            self._loop.call_later(_NO_DESCRIPTOR_S, self._ended)
            return
        status = self._kernel.reap(self.pidfd)
        if status is None:
            return
        was_importing = self.phase is Phase.IMPORTING
        is_done = not self.preload and self.phase is Phase.READY and not self.retired
        if not is_done:
            self.phase = Phase.GONE
        self._loop.remove_reader(self.pidfd)
        self._loop.remove_reader(self._control.fileno())
        self._kernel.close(self.pidfd)
        self.pidfd = -1
        self._control.close()
        if members:
            self._output.close()
        else:
            self._output.drain()
        if was_importing:
            self.failure = self.failure or ImportFailure.by_end(status)
            self._listener.import_failed(self, self.failure)
        if not is_done:
            self._listener.template_gone(self, status)
