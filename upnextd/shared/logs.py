"""Where lines go: the daemon's own and its children's stdout and stderr, to our stderr or a file, without ever blocking.

A reader of our stderr that stops reading costs lines (counted and reported), not the supervisor's time; so does a child that floods.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from upnext.config import LOG_LEVELS
from upnext.core.visible import visible, visible_lines
from upnextd.shared import log_records
from upnextd.shared.kernel import Pipes
from upnextd.shared.log_quota import RATE_BYTES_PER_S, LogQuota
from upnextd.shared.log_records import Record

_CHUNK_BYTES = 1 << 16
_LINE_CAP_BYTES = 16 << 10
_BACKLOG_CAP_BYTES = 1 << 20
_TELL_DROPPED_S = 1.0
_PIPE_WRITE_BYTES, _TTY_WRITE_BYTES = select.PIPE_BUF, 256
"""What a blocking pipe or terminal that is ready takes without blocking."""
_POLL_S = 0.02
"""How often one that was not ready is tried again."""


class Sink:
    """Bytes to a descriptor, at most 1 MiB behind; what is over that is dropped and counted."""

    def __init__(self, fd: int) -> None:
        self._socket: socket.socket | None = None
        self._fd, self._most_bytes = _own_description(fd)
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._socket = socket.socket(fileno=self._fd)
        self._backlog = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._poll: asyncio.TimerHandle | None = None
        self.dropped = 0
        self.report: Callable[[int], bytes] = _reported_plainly
        """How the number of dropped lines is reported in the log itself."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on a backlog is written out by the loop."""
        self._loop = loop

    def write(self, line: bytes) -> None:
        if len(self._backlog) + len(line) > _BACKLOG_CAP_BYTES:
            self.dropped += 1
            return
        if self.dropped and not self._backlog:
            line = self.report(self.dropped) + line
            self.dropped = 0
        waiting = bool(self._backlog)
        self._backlog += line
        if not waiting:
            self._flush()

    def reopen(self, fd: int) -> None:
        """Write to another descriptor, ours from now on. What is left goes to the old one, or is lost."""
        self.finish(0.1)
        self._backlog.clear()
        self._socket = None
        self._fd, self._most_bytes = fd, None

    def flush(self, within_s: float = 0.5) -> None:
        """Write out what is left, for so long."""
        deadline = time.monotonic() + within_s
        while self._backlog and (left_s := deadline - time.monotonic()) > 0:
            select.select([], [self._fd], [], left_s)
            self._flush()

    def finish(self, within_s: float = 0.5) -> None:
        """Write out what is left, for so long; then close."""
        self.flush(within_s)
        if self._loop is not None:
            self._unwatch()
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)

    def _flush(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        while self._backlog:
            try:
                if self._socket is not None:
                    sent = self._socket.send(self._backlog, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                else:
                    sent = self._write()
            except BlockingIOError:
                self._flush_later()
                return
            except OSError as error:
                # A full disk or a reader that hung up: these lines are lost, the daemon goes on.
                if error.errno != errno.EPIPE:
                    self.dropped += self._backlog.count(b"\n")
                self._backlog.clear()
                break
            del self._backlog[:sent]
        self._unwatch()

    def _flush_later(self) -> None:
        if self._loop is None or self._poll is not None:
            return
        if self._most_bytes is None:
            self._loop.add_writer(self._fd, self._flush)
        else:  # loops may make what they watch non-blocking, and this is not ours alone
            self._poll = self._loop.call_later(_POLL_S, self._flush)

    def _write(self) -> int:
        """Raises BlockingIOError, as a non-blocking write does, also where the descriptor blocks."""
        if os.isatty(self._fd):
            return self._write_to_terminal()
        return self._write_now()

    def _write_to_terminal(self) -> int:
        """Also in its background after `stty tostop`, where a write is answered by SIGTTOU, and is begun anew after it, without end."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            return self._write_now()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _write_now(self) -> int:
        if self._most_bytes is None:
            return os.write(self._fd, self._backlog)
        if not select.select([], [self._fd], [], 0)[1]:
            raise BlockingIOError
        return os.write(self._fd, self._backlog[: self._most_bytes])

    def _unwatch(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.remove_writer(self._fd)
            except (ValueError, OSError):
                return


class Log:
    """Formats lines, the daemon's own and its children's."""

    def __init__(self, sink: Sink, *, as_json: bool, timestamps: bool, least: str = "debug") -> None:
        self._sink = sink
        self._as_json = as_json
        self._timestamps = timestamps
        self._below = LOG_LEVELS[: LOG_LEVELS.index(least)]
        sink.report = lambda dropped: self._format(
            "upnextd", os.getpid(), f"{dropped} lines were dropped: they could not be written", "warning"
        )

    def reopen(self, fd: int) -> None:
        """Go on in another file."""
        self._sink.reopen(fd)

    def note(self, message: str) -> None:
        self.line("upnextd", os.getpid(), message, "info")

    def caution(self, message: str) -> None:
        self.line("upnextd", os.getpid(), message, "warning")

    def fault(self, message: str) -> None:
        self.line("upnextd", os.getpid(), message, "error")

    def line(self, slot: str, pid: int | None, message: str, level: str | None = None) -> None:
        """One line of `slot`, unless its level is below the least; `level` None: a child printed it."""
        if level in self._below:
            return
        self._sink.write(self._format(slot, pid, message, level))

    def child_line(self, slot: str, pid: int | None, line: str) -> None:
        """A line from a child: what it printed, or a record of its logging."""
        record = log_records.parse(line)
        if record is None:
            self.line(slot, pid, line)
        else:
            self._sink.write(self._format(slot, pid, record.message, record.level, record))

    def _format(
        self,
        slot: str,
        pid: int | None,
        message: str,
        level: str | None,
        record: Record | None = None,
    ) -> bytes:
        logger = None if record is None else record.logger or None
        job_id = None if record is None else record.job_id
        if self._as_json:
            fields = {"at": now_iso(), "slot": slot, "pid": pid, "level": level or "info", "message": message}
            if logger is not None:
                fields["logger"] = logger
            if job_id is not None:
                fields["job_id"] = job_id
            if record is not None:
                # What the line itself has under such a name stays.
                fields = {**record.fields, **fields}
            return orjson.dumps(fields) + b"\n"
        head = f"{now_iso()} " if self._timestamps else ""
        job = f" {job_id}" if job_id is not None else ""
        mark = f"{level}: " if logger is not None or level in ("warning", "error") else ""
        source = f"{logger}: " if logger is not None else ""
        start = visible(f"{slot}[{pid or '-'}]{job} {mark}{source}")
        text = visible_lines(message, keep="\t", indent="    ")
        return f"{head}{start}{text}\n".encode("utf-8", "replace")


class LineReader:
    """Reads a child's output from a pipe and gives it on line by line. Over-long lines are cut into pieces.

    A child that prints faster than its allowance (`upnextd.shared.log_quota`) is not held up: what is too much is dropped, counted, and
    reported within a second by a record of `upnextd.shared.log_records` in its place.
    """

    def __init__(
        self,
        fd: int,
        loop: asyncio.AbstractEventLoop,
        on_line: Callable[[str], None],
        pipes: Pipes,
    ) -> None:
        """`fd` must not block."""
        self.fd = fd
        self._pipes = pipes
        self._loop = loop
        self._on_line = on_line
        self.unfinished = bytearray()
        self._allowance = LogQuota(loop.time())
        self._dropped = 0
        self._telling: asyncio.TimerHandle | None = None
        self.closed = False
        loop.add_reader(fd, self._read)

    def drain(self) -> None:
        """Take in what is in the pipe now, then close: its writer is gone."""
        for _ in range(64):
            if self.closed or not self._read():
                break
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.fd)
        self._pipes.close(self.fd)
        if self.unfinished:
            self._emit(bytes(self.unfinished))
            self.unfinished.clear()
        self._tell_dropped()

    def _read(self) -> bool:
        try:
            data = self._pipes.read(self.fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._allowance.refill(self._loop.time())
        if self._allowance.exhausted:
            self._drop(data)
            return True
        self.unfinished += data
        *lines, rest = self.unfinished.split(b"\n")
        for line in lines:
            self._emit_pieces(line)
        whole = len(rest) - len(rest) % _LINE_CAP_BYTES
        if whole:
            self._emit_pieces(rest[:whole])
        self.unfinished = bytearray(rest[whole:])
        return True

    def _drop(self, data: bytes) -> None:
        """Nothing of this chunk is let through, save the start of a line that may be finished later."""
        lines = data.count(b"\n")
        if lines:
            self.unfinished = bytearray(data[data.rindex(b"\n") + 1 :][:_LINE_CAP_BYTES])
        self._count_dropped(max(1, lines))

    def _emit_pieces(self, line: bytearray) -> None:
        for start in range(0, max(1, len(line)), _LINE_CAP_BYTES):
            self._emit(bytes(line[start : start + _LINE_CAP_BYTES]))

    def _emit(self, line: bytes) -> None:
        if self._allowance.take(len(line)):
            self._on_line(line.decode("utf-8", "replace").rstrip("\r"))
        else:
            self._count_dropped(1)

    def _count_dropped(self, lines: int) -> None:
        self._dropped += lines
        if self._telling is None and not self.closed:
            self._telling = self._loop.call_later(_TELL_DROPPED_S, self._tell_dropped)

    def _tell_dropped(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        dropped, self._dropped = self._dropped, 0
        if dropped:
            rate = f"{RATE_BYTES_PER_S >> 20} MiB/s"
            notice = Record("warning", "upnextd.shared.logs", f"{dropped} lines were dropped: more than {rate}")
            self._on_line(log_records.encode(notice).decode().rstrip("\n"))


def now_iso() -> str:
    """UTC, milliseconds, `2026-01-01T00:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reported_plainly(dropped: int) -> bytes:
    return b"upnextd: %d lines were dropped\n" % dropped


def _own_description(fd: int) -> tuple[int, int | None]:
    """A descriptor for the same file that can be non-blocking without changing our parent's.

    Where there can't be one (another user's pipe or terminal) the second value is how much may be written at once when it is ready.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), None
        except OSError:
            return os.dup(fd), _PIPE_WRITE_BYTES if stat.S_ISFIFO(mode) else _TTY_WRITE_BYTES
    return os.dup(fd), None
