"""A line in the log for each start and each end of an attempt, for people who watch a service run in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

LOGGER = "upnext.jobs"
log = logging.getLogger(LOGGER)

_MS_UP_TO_S = 10.0
"""Longer durations are written in seconds."""


@dataclass(slots=True)
class _Running:
    job: str
    task: str
    began: float
    error: str = ""


class JobLines:
    """Of one worker, from what its runtime reports to its host. `tasks` are the names in WorkerSpec.tasks' order."""

    def __init__(self, tasks: Sequence[str], *, are_wanted: bool = True) -> None:
        self._tasks = tuple(tasks)
        self.are_wanted = are_wanted
        """Without, nothing is to be reported here: the caller asks first, for it is once a job."""
        self._running: dict[tuple[int, int, int], _Running] = {}
        """By (task, entry ms, entry seq)."""
        self._cells: dict[int, tuple[int, int, int]] = {}
        self._cut = False

    def started(self, cell: int, entry: tuple[int, int, int], tail: str) -> None:
        """An attempt begins in `cell`, or goes on there after it waited. `tail` is the job's id without its task."""
        self._cells[cell] = entry
        if entry in self._running or not log.isEnabledFor(logging.INFO):
            return
        one = self._running[entry] = _Running(tail, self._tasks[entry[0]], time.perf_counter())
        log.info("start %s %s", one.task, one.job, extra=_fields(one))

    def failed(self, job_id: str, error: str) -> None:
        task, _, tail = job_id.rpartition(":")
        for one in self._running.values():
            if one.job == tail and one.task == task:
                one.error = error

    def parked(self, cell: int) -> None:
        self._cells.pop(cell, None)

    def ended(self, cell: int, *, ok: bool) -> None:
        entry = self._cells.pop(cell, None)
        if entry is not None:
            self.ended_parked(entry, ok=ok)

    def ended_parked(self, entry: tuple[int, int, int], *, ok: bool) -> None:
        one = self._running.pop(entry, None)
        if one is None:
            return
        word = "ok" if ok else "failed" if one.error else "cut" if self._cut else "cancelled"
        error = f" {one.error}" if one.error else ""
        log.info(
            "%s %s %s %s%s", word, one.task, one.job, _took(time.perf_counter() - one.began), error, extra=_fields(one)
        )

    def forget(self) -> None:
        """What ran belongs to other workers now: the process was taken for dead."""
        self._running.clear()
        self._cells.clear()

    def cut(self) -> None:
        """From now on what ends without a result is cut off with its process, and runs again."""
        self._cut = True


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < _MS_UP_TO_S else f"{seconds:.1f} s"


def _fields(one: _Running) -> dict[str, str]:
    return {"job_id": f"{one.task}:{one.job}", "task": one.task}
