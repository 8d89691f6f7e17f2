"""What jobs print in a worker or a pool process, on its way to the supervisor's log with the job's id."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from upnextd.shared import log_records
from upnextd.shared.log_records import TEXT_CAP, Record, encode

_Writer = tuple[str, int]
"""A job, and the thread in which it writes."""


class JobPrints(io.TextIOWrapper):
    """A standard stream in place of `stream`: each line that is written in a job goes as a record with the job's id.

    What a job writes without a line's end waits for the end of that line, as it would in a pipe; one that is never ended goes when MOST
    others wait, or when the process flushes outside of jobs, as at its end. Code that wrote to `stream` itself goes on doing so, in the
    same order.
    """

    MOST = 64

    def __init__(self, stream: io.TextIOWrapper, job_id: Callable[[], str | None]) -> None:
        super().__init__(stream.buffer, stream.encoding, errors="backslashreplace", newline="\n", line_buffering=True)
        self._stream = stream  # it closes the buffer when it is collected
        self._job_id = job_id
        self._begun: dict[_Writer, str] = {}

    def write(self, text: str, /) -> int:
        job_id = self._job_id()
        if job_id is None:
            return super().write(text)
        # No lock: a destructor or a signal's handler that prints in the midst of this would wait for its own thread, for ever, and a
        # forked process for a thread that it doesn't have. A writer's row is its thread's own; each step on the rows is a single one.
        writer = job_id, threading.get_ident()
        *lines, rest = (self._begun.pop(writer, "") + text).split("\n")
        if rest:
            rest = self._begun.get(writer, "") + rest
            self._begun[writer] = rest
        self._put([(job_id, line) for line in lines])
        if len(rest) > TEXT_CAP:
            self._put_begun([writer])
        elif len(self._begun) > self.MOST:
            self._put_begun(list(self._begun)[:1])
        return len(text)

    def flush(self) -> None:
        if self._begun and self._job_id() is None:
            self._put_begun(list(self._begun))
        super().flush()

    def _put_begun(self, writers: Sequence[_Writer]) -> None:
        begun = [(writer[0], self._begun.pop(writer, None)) for writer in writers]
        self._put([(job_id, text) for job_id, text in begun if text is not None])

    def _put(self, lines: Sequence[tuple[str, str]]) -> None:
        if lines:
            pieces = [
                encode(Record("", "", line[at : at + TEXT_CAP], job_id)).decode()
                for job_id, line in lines
                for at in range(0, len(line) or 1, TEXT_CAP)
            ]
            super().write("".join(pieces))


def marked(stream: Any, job_id: Callable[[], str | None]) -> Any:
    """A standard stream in whose place jobs' lines have their ids; one that the service made itself stays as it is."""
    return JobPrints(stream, job_id) if type(stream) is io.TextIOWrapper else stream


def install(job_id: Callable[[], str | None]) -> None:
    """What this process logs, and what its jobs print, is on its way from now on: see `upnextd.shared.log_records.install`."""
    sys.stdout, sys.stderr = marked(sys.stdout, job_id), marked(sys.stderr, job_id)
    log_records.install(job_id)
