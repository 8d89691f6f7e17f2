"""The supervisor's side of one child: its pid, its descriptors, what it last reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Any, Self, cast

from upnextd.rules.hangs import Heart, Pulse
from upnextd.shared import scoreboard
from upnextd.shared.channel import Channel
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import LineReader
from upnextd.shared.messages import FromChild
from upnextd.shared.scoreboard import Reader, WorkerShape

_DUMP_CAP_BYTES = 64 << 10


OnMessage = Callable[["Child", FromChild | None], None]
"""Takes a child's messages; None: its channel is closed."""


@dataclass(frozen=True, slots=True)
class ChildFds:
    """A child's descriptors on our side."""

    channel: int
    page: int
    dump: int
    output: int


class Child:
    """One incarnation. Made before the fork; the pid comes with the template's report."""

    def __init__(
        self,
        token: int,
        slot: str,
        generation: int,
        incarnation: int,
        shapes: Sequence[WorkerShape],
        loop: asyncio.AbstractEventLoop,
        on_message: OnMessage,
        on_line: Callable[[Child, str], None],
        kernel: Kernel,
        ends: ChildFds | None = None,
    ) -> None:
        """Makes its descriptors, or takes `ends`. Raises OSError (EMFILE, ENOMEM …), leaving nothing open."""
        self.token = token
        self.slot = slot
        self.generation = generation
        self.incarnation = incarnation
        self.pid: int | None = None
        self.pidfd = -1
        self.born_at = loop.time()
        self.ready_at: float | None = None
        self.heart = Heart(0, self.born_at)
        self.abandoned: list[str] = []
        self.boot_failure: tuple[int, str] | None = None
        self.broker_away = False
        """It could not start because the broker can't be reached."""
        self.lifespan_failed = False
        self.secrets: dict[str, str] = {}
        """Where it found the secrets that it has read, by their names."""
        self.asked = False
        self.fetches = True
        """It has not acknowledged a drain."""
        self.drain_number = 0
        """The drain last asked for: an answer to an earlier one says nothing."""
        self.reason: str | None = None
        self.hung = False
        self.died_in_fork = False
        """The process that was to become it, or to fork it, ended before there was a pid: a fork hook of the service did that."""
        self.killed = False
        """We sent it a SIGKILL."""
        self.stack_waiters: dict[int, asyncio.Future[str]] = {}
        """What waits for the child's answer about its tasks, by the number of the question."""
        self.stacks = ""
        self._loop = loop
        self._kernel = kernel
        self._theirs: list[int] = []
        self._dump_seen = 0
        self._shapes = tuple(shapes)
        if ends is None:
            ends, self._theirs = _open(kernel, slot, shapes)
        self.ends = ends
        self.page = Reader(kernel.map(ends.page, scoreboard.page_bytes(shapes)), shapes)
        self.channel = Channel(
            kernel.connection(ends.channel),
            loop,
            lambda message: on_message(self, cast("FromChild", message)),
            lambda: on_message(self, None),
        )
        self._output = LineReader(ends.output, loop, lambda line: on_line(self, line), kernel)

    @property
    def order_fds(self) -> tuple[int, int, int, int]:
        """What the child is given: its line to us, its page, where stacks go, where output goes."""
        channel, output = self._theirs
        return channel, self.ends.page, self.ends.dump, output

    def ordered(self) -> None:
        """The order is out: what belongs to the child only is closed on our side."""
        for fd in self._theirs:
            self._kernel.close(fd)
        self._theirs = []

    def watch(self, pid: int, on_gone: Callable[[Child], None]) -> None:
        self.pid = pid
        self.pidfd = self._kernel.open_pidfd(pid)
        self._loop.add_reader(self.pidfd, on_gone, self)

    def rewatch(self, on_gone: Callable[[Child], None]) -> None:
        self._loop.add_reader(self.pidfd, on_gone, self)

    def unwatch(self) -> None:
        """Watch the pidfd no longer: the child has ended, or is left behind."""
        if self.pidfd >= 0:
            self._loop.remove_reader(self.pidfd)

    def signal(self, number: Signals) -> None:
        self.killed = self.killed or number == Signals.SIGKILL
        if self.pidfd >= 0:
            self._kernel.signal(self.pidfd, number)

    def write_stacks(self) -> bool:
        """Have it write what its threads do, for `new_stacks`. -> whether it can: the signal for it ends a process that just starts."""
        can = self.pid is not None and self._kernel.catches(self.pid, Signals.SIGUSR2)
        if can:
            self.signal(Signals.SIGUSR2)
        return can

    def new_stacks(self) -> str:
        """What was written into the stack memfd since the last look."""
        text, self._dump_seen = self._kernel.read_from(self.ends.dump, self._dump_seen, _DUMP_CAP_BYTES)
        return text.decode("utf-8", "replace")

    def close(self, *, writers_gone: bool) -> None:
        """Take in its last output, then close its descriptors."""
        self.channel.close()
        if writers_gone:
            self._output.drain()
        else:
            self._output.close()
        self.ordered()
        self.page.close()
        self._kernel.close(self.ends.page)
        self._kernel.close(self.ends.dump)
        if self.pidfd >= 0:
            self.unwatch()
            self._kernel.close(self.pidfd)
            self.pidfd = -1

    # -- over an upgrade of the supervisor --

    @property
    def settled(self) -> bool:
        """Whether its pid is known, it is watched, its channel is open, and everything for it is sent."""
        return self.pidfd >= 0 and not self.channel.closed and not self.channel.unsent and not self.stack_waiters

    def to_state(self, fds: list[int]) -> dict[str, Any]:
        """As JSON; `fds` gets its descriptors."""
        ends = self.ends
        fds += [ends.channel, ends.page, ends.dump, ends.output, self.pidfd]
        return {
            "identity": [self.token, self.slot, self.generation, self.incarnation],
            "shapes": [[shape.name, shape.concurrency, list(shape.tasks)] for shape in self._shapes],
            "ends": [ends.channel, ends.page, ends.dump, ends.output],
            "pid": self.pid,
            "pidfd": self.pidfd,
            "heart": [self.heart.counter, self.heart.changed_at, self.heart.reported.value],
            "unread": self.channel.unread.decode("latin-1"),
            "unfinished": self._output.unfinished.decode("latin-1"),
            "dump_seen": self._dump_seen,
            "fields": {name: getattr(self, name) for name in _PLAIN_FIELDS},
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        on_message: OnMessage,
        on_line: Callable[[Child, str], None],
        kernel: Kernel,
    ) -> Self:
        """What `to_state` wrote, with its descriptors open; not watched yet."""
        token, slot, generation, incarnation = state["identity"]
        shapes = [WorkerShape(name, concurrency, tuple(tasks)) for name, concurrency, tasks in state["shapes"]]
        child = cls(
            token, slot, generation, incarnation, shapes, loop, on_message, on_line, kernel, ChildFds(*state["ends"])
        )
        child.pid = state["pid"]
        child.pidfd = state["pidfd"]
        counter, changed_at, pulse = state["heart"]
        child.heart = Heart(counter, changed_at, Pulse(pulse))
        child.channel.unread = bytearray(state["unread"].encode("latin-1"))
        child._output.unfinished = bytearray(state["unfinished"].encode("latin-1"))
        child._dump_seen = state["dump_seen"]
        for name, value in state["fields"].items():
            setattr(child, name, tuple(value) if name == "boot_failure" and value is not None else value)
        return child


_PLAIN_FIELDS = (
    "born_at", "ready_at", "abandoned", "boot_failure", "asked", "drain_number", "fetches", "secrets", "reason", "hung", "killed", "stacks",
)  # fmt: skip


def _open(kernel: Kernel, slot: str, shapes: Sequence[WorkerShape]) -> tuple[ChildFds, list[int]]:
    """Our ends, and the child's: its end of the channel and of the pipe."""
    opened: list[int] = []
    try:
        page = scoreboard.create(kernel, shapes, f"upnextd-{slot}")
        opened.append(page)
        dump = kernel.memory(f"upnextd-stacks-{slot}", 0)
        opened.append(dump)
        out, into = kernel.pipe()
        opened += [out, into]
        ours, theirs = kernel.stream_pair()
    except OSError:
        for fd in opened:
            kernel.close(fd)
        raise
    return ChildFds(ours, page, dump, out), [theirs, into]
