"""The supervisor's side of one child: its pid, its descriptors, what it last said."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from upnextd import process, scoreboard
from upnextd.channel import Channel, Message
from upnextd.hangs import Heart
from upnextd.logs import LineReader
from upnextd.scoreboard import Reader, WorkerShape

_DUMP_CAP_BYTES = 64 << 10


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
        on_message: Callable[[Child, Message], None],
        on_line: Callable[[Child, str], None],
    ) -> None:
        """Raises OSError (EMFILE, ENOMEM …), leaving nothing open."""
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
        self.asked = False
        self.drain_number = 0
        """The drain last asked for: an answer to an earlier one says nothing."""
        self.reason: str | None = None
        self.hung = False
        self.killed = False
        """We sent it a SIGKILL."""
        self.stack_waiters: dict[int, asyncio.Future[str]] = {}
        """Who waits for what the child's loop says about its tasks."""
        self.stacks = ""
        self._loop = loop
        self._theirs: list[int] = []
        self._dump_seen = 0
        opened: list[int] = []
        try:
            page_fd = scoreboard.create(shapes, f"upnextd-{slot}")
            opened.append(page_fd)
            self._dump_fd = os.memfd_create(f"upnextd-stacks-{slot}", os.MFD_CLOEXEC)
            opened.append(self._dump_fd)
            out, into = os.pipe2(os.O_CLOEXEC)
            opened += [out, into]
            ours, theirs = socket.socketpair()
            their_fd = theirs.detach()
            opened.append(their_fd)
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        self._theirs = [their_fd, page_fd, into]
        self.page = Reader(page_fd, shapes)
        self.channel = Channel(ours, loop, lambda message: on_message(self, message), lambda: None)
        self._output = LineReader(out, loop, lambda line: on_line(self, line))
        self.order_fds = (their_fd, page_fd, self._dump_fd, into)

    def ordered(self) -> None:
        """The order is out: what belongs to the child only is closed on our side."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs = []

    def watch(self, pid: int, on_gone: Callable[[Child], None]) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self.pidfd, on_gone, self)

    def unwatch(self) -> None:
        """It is being buried: the pidfd has said all it can."""
        self._loop.remove_reader(self.pidfd)

    def signal(self, number: process.signal.Signals) -> None:
        self.killed = self.killed or number == process.signal.SIGKILL
        if self.pidfd >= 0:
            process.send_signal(self.pidfd, number)

    def new_stacks(self) -> str:
        """What was written into the stack memfd since the last look."""
        size = os.fstat(self._dump_fd).st_size
        start = max(self._dump_seen, size - _DUMP_CAP_BYTES)
        text = os.pread(self._dump_fd, size - start, start).decode("utf-8", "replace") if size > start else ""
        self._dump_seen = size
        return text

    def close(self, *, writers_gone: bool) -> None:
        """Take in what it still said, then give its descriptors back."""
        self.channel.close()
        if writers_gone:
            self._output.drain()
        else:
            self._output.close()
        self.ordered()
        self.page.close()
        os.close(self._dump_fd)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
