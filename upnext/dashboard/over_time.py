"""The last hour of all tasks, minute by minute, for the pages: read once for all viewers, and then only what is new."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.series import Point, Quantiles, Sample, Times
from upnext.engine.calls.series import Moment
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import series as views

MINUTES = 60
_AGAIN_S = 5.0
"""The newest minutes are read again after so long."""
_UNSETTLED = 3
"""Of so many minutes more may still come: workers send their times a little later."""
_MINUTES_A_READ = 6
"""What is read at once is in memory with its histograms."""

Columns = dict[str, Any]
"""What `columns` gives."""


@dataclass(frozen=True, slots=True)
class Hour:
    """`of`: each task's columns; `whole`: the points of all tasks together, oldest first."""

    of: dict[str, Columns] = field(default_factory=dict[str, Columns])
    whole: list[Point] = field(default_factory=list[Point])


@dataclass(frozen=True, slots=True)
class _Minute:
    """What is kept of a minute that was read: no histograms, which take most of its memory. `together`: of all attempts."""

    sampled: bool
    samples: dict[str, Sample]
    took: dict[str, Quantiles]
    together: Quantiles


class OverTime:
    """Keeps what was read. Its owner calls it from one thread at a time."""

    def __init__(self) -> None:
        self._minutes: dict[int, _Minute] = {}
        self._last: dict[str, Sample] = {}
        self._hour = Hour()
        self._read_s = 0.0

    def hour(self, client: SyncQueueClient, keys: Keys, now_ms: int) -> Hour:
        """Up to the last whole minute."""
        if self._read_s and time.monotonic() - self._read_s < _AGAIN_S:
            return self._hour
        wanted = views.moments(now_ms, series.FINE, MINUTES)
        missing = [moment for moment in wanted if moment not in self._minutes or moment > wanted[-1] - _UNSETTLED]
        kept = self._minutes
        for at in range(0, len(missing), _MINUTES_A_READ):
            self._last, found = views.read(client, keys, series.FINE, missing[at : at + _MINUTES_A_READ])
            kept = kept | {moment: _minute(one) for moment, one in found.items()}
        self._minutes = {moment: kept[moment] for moment in wanted}
        self._hour = self._drawn_up(wanted)
        self._read_s = time.monotonic()
        return self._hour

    def _drawn_up(self, wanted: Sequence[int]) -> Hour:
        minutes = self._minutes
        sampled = {moment: one.sampled for moment, one in minutes.items()}
        names = sorted({name for one in minutes.values() for name in (*one.samples, *one.took)} | set(self._last))
        of: dict[str, Columns] = {}
        whole = [_Sums() for _ in wanted[:-1]]
        for name in names:
            rows = {moment: one.samples[name] for moment, one in minutes.items() if name in one.samples}
            took = {moment: one.took[name] for moment, one in minutes.items() if name in one.took}
            points = series.points(wanted, series.filled(wanted, sampled, rows, self._last.get(name)), took)
            of[name] = columns(points)
            for sums, point in zip(whole, points, strict=True):
                sums.add(point)
        return Hour(of, [one.point(at, minutes[at].together) for at, one in zip(wanted[:-1], whole, strict=True)])


def _minute(one: Moment) -> _Minute:
    together = Times()
    for times in one.times.values():
        together.add(times)
    samples = {sys.intern(name): sample for name, sample in one.samples.items()}
    took = {sys.intern(name): times.quantiles() for name, times in one.times.items()}
    return _Minute(one.sampled, samples, took, together.quantiles())


@dataclass(slots=True)
class _Sums:
    """All tasks in one minute: sums of what is counted, the oldest of what waits."""

    ended: int | None = None
    failed: int | None = None
    queued: int | None = None
    running: int | None = None
    oldest_s: float | None = None

    def add(self, point: Point) -> None:
        self.ended = _sum(self.ended, point.ended)
        self.failed = _sum(self.failed, point.failed)
        self.queued = _sum(self.queued, point.queued)
        self.running = _sum(self.running, point.running)
        if point.oldest_s is not None:
            self.oldest_s = max(self.oldest_s or 0.0, point.oldest_s)

    def point(self, moment: int, together: Quantiles) -> Point:
        return Point(moment * 60_000, self.ended, self.failed, self.queued, self.running, self.oldest_s, *together)


def _sum(total: int | None, value: int | None) -> int | None:
    return total if value is None else (total or 0) + value


def columns(points: Sequence[Point], step: int = series.FINE) -> Columns:
    """As JSON, a list for each value: `ended`, `failed` within a step of `step_s`; what was queued and running as it began; seconds."""
    return {
        "step_s": step * 60,
        "first_ms": points[0].at_ms if points else None,
        "ended": [one.ended for one in points],
        "failed": [one.failed for one in points],
        "queued": [one.queued for one in points],
        "running": [one.running for one in points],
        "oldest_s": [one.oldest_s for one in points],
        **{name: [getattr(one, name) for one in points] for name in Quantiles._fields},
    }
