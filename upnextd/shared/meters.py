"""Counts and histograms of a child's jobs, per task, in the last part of its shared page: what `--metrics` serves.

For each task, in the order of the service's workers and their tasks, 8 bytes each: ended well · failed · sum of durations (f64) · one count
per duration bucket · sum of lateness (f64) · one count per lateness bucket. Attempts are counted, not jobs: one that is tried again counts
each time. Lateness is the time from when a job could have started to when it did. Nothing is written unless metrics are on.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the buckets; one more bucket takes the rest."""
_BUCKETS = len(BOUNDS_S) + 1
_DURATIONS = 2
_LATENESS = _DURATIONS + 1 + _BUCKETS
WORDS = _LATENESS + 1 + _BUCKETS
_WORD_BYTES = 8
_ROW = struct.Struct(f"<QQ d{_BUCKETS}Q d{_BUCKETS}Q")
LAYOUT = (_ROW.format, BOUNDS_S)
_monotonic = time.monotonic
_now_s = time.time


def bytes_for(tasks: int) -> int:
    return tasks * WORDS * _WORD_BYTES


def _zeros() -> list[int]:
    return [0] * _BUCKETS


@dataclass(slots=True)
class Histogram:
    """Seconds: their sum, and how many fell into each bucket (not cumulative)."""

    sum_s: float = 0.0
    counts: list[int] = field(default_factory=_zeros)

    def add(self, other: Histogram) -> None:
        self.sum_s += other.sum_s
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]

    def as_json(self) -> dict[str, Any]:
        return {"sum_s": self.sum_s, "counts": self.counts}


@dataclass(slots=True)
class TaskMeter:
    """Attempts of one task."""

    ok: int = 0
    failed: int = 0
    durations: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)

    def add(self, other: TaskMeter) -> None:
        self.ok += other.ok
        self.failed += other.failed
        self.durations.add(other.durations)
        self.lateness.add(other.lateness)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "failed": self.failed,
            "durations": self.durations.as_json(),
            "lateness": self.lateness.as_json(),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        return cls(state["ok"], state["failed"], Histogram(**state["durations"]), Histogram(**state["lateness"]))


Meters = dict[str, TaskMeter]


def read(page: Any, offset: int, tasks: Sequence[str]) -> Meters:
    """What a page's last part, from `offset`, says. A page may be read while it is being written."""
    found: Meters = {}
    for row, task in enumerate(tasks):
        ok, failed, *rest = _ROW.unpack_from(page, offset + row * WORDS * _WORD_BYTES)
        durations = Histogram(rest[0], rest[1 : 1 + _BUCKETS])
        lateness = Histogram(rest[1 + _BUCKETS], rest[2 + _BUCKETS :])
        found.setdefault(task, TaskMeter()).add(TaskMeter(ok, failed, durations, lateness))
    return found


def total(many: Iterable[Meters]) -> Meters:
    sums: Meters = {}
    for meters in many:
        for task, meter in meters.items():
            sums.setdefault(task, TaskMeter()).add(meter)
    return sums


class Meter:
    """The child's side, of one Worker: `first_task` is where its tasks begin among those of the service."""

    __slots__ = ("_begun", "_counts", "_first", "_parked", "_sums")

    def __init__(self, page: Any, offset: int, first_task: int, cells: int) -> None:
        words = memoryview(page)[offset:]
        self._counts = words.cast("Q")
        self._sums = words.cast("d")
        self._first = first_task
        self._begun: list[tuple[float, int, int, int]] = [(0.0, 0, 0, 0)] * cells
        self._parked: dict[tuple[int, int, int], float] = {}

    def started(self, cell: int, task: int, entry_ms: int, entry_seq: int) -> None:
        entry = (task, entry_ms, entry_seq)
        if self._parked and (begun := self._parked.pop(entry, None)) is not None:
            self._begun[cell] = (begun, *entry)
            return
        self._begun[cell] = (_monotonic(), *entry)
        self._observe((self._first + task) * WORDS + _LATENESS, max(0.0, _now_s() - entry_ms / 1000))

    def parked(self, cell: int) -> None:
        begun, *entry = self._begun[cell]
        self._parked[entry[0], entry[1], entry[2]] = begun

    def ended(self, cell: int, ok: bool) -> None:
        begun, task, _, _ = self._begun[cell]
        self._count(task, begun, ok)

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        begun = self._parked.pop((task, entry_ms, entry_seq), None)
        if begun is not None:
            self._count(task, begun, ok)

    def observed(self, row: int, seconds: float) -> None:
        """Count something of this row that took so long."""
        at = (self._first + row) * WORDS
        self._counts[at] += 1
        self._observe(at + _DURATIONS, seconds)

    def _count(self, task: int, begun: float, ok: bool) -> None:
        at = (self._first + task) * WORDS
        self._counts[at if ok else at + 1] += 1
        self._observe(at + _DURATIONS, _monotonic() - begun)

    def _observe(self, at: int, seconds: float) -> None:
        self._sums[at] += seconds
        self._counts[at + 1 + bisect_left(BOUNDS_S, seconds)] += 1
