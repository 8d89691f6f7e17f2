"""The last hour of all tasks, minute by minute, for the pages: read once for all viewers, and then only what is new."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.series import Point, Sample, Times
from upnext.engine.calls.series import Moment
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import series as views

MINUTES = 60
_AGAIN_S = 5.0
"""The newest minutes are read again after so long."""
_UNSETTLED = 3
"""Of so many minutes more may still come: workers send their times a little later."""

QUANTILES = ("wait_p50_s", "wait_p95_s", "run_p50_s", "run_p95_s")


@dataclass(frozen=True, slots=True)
class Hour:
    """`of`: each task's points, oldest first; `whole`: those of all tasks together."""

    of: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    whole: list[Point] = field(default_factory=list[Point])


class OverTime:
    """Keeps what was read. Its owner calls it from one thread at a time."""

    def __init__(self) -> None:
        self._found: dict[int, Moment] = {}
        self._last: dict[str, Sample] = {}
        self._hour = Hour()
        self._read_s = 0.0

    def hour(self, client: SyncQueueClient, keys: Keys, now_ms: int) -> Hour:
        """Up to the last whole minute."""
        if self._read_s and time.monotonic() - self._read_s < _AGAIN_S:
            return self._hour
        wanted = views.moments(now_ms, series.FINE, MINUTES)
        missing = [moment for moment in wanted if moment not in self._found or moment > wanted[-1] - _UNSETTLED]
        self._last, found = views.read(client, keys, series.FINE, missing)
        kept = self._found | found
        self._found = {moment: kept[moment] for moment in wanted}
        names = sorted({name for one in self._found.values() for name in (*one.samples, *one.times)} | set(self._last))
        of = {name: views.points_of(name, wanted, self._found, self._last.get(name)) for name in names}
        self._hour = Hour(of, _summed(wanted, list(of.values()), self._found))
        self._read_s = time.monotonic()
        return self._hour


def _summed(wanted: Sequence[int], of: Sequence[Sequence[Point]], found: dict[int, Moment]) -> list[Point]:
    """All tasks together: sums of what is counted, the oldest of what waits, quantiles over all attempts."""
    points: list[Point] = []
    for at, moment in enumerate(wanted[:-1]):
        row = [one[at] for one in of]
        times = Times()
        for one in found[moment].times.values():
            times.add(one)
        points.append(
            Point(
                moment * 60_000,
                _sum([one.ended for one in row]),
                _sum([one.failed for one in row]),
                _sum([one.queued for one in row]),
                _sum([one.running for one in row]),
                max((one.oldest_s for one in row if one.oldest_s is not None), default=None),
                series.quantile_s(times.waits, 0.5),
                series.quantile_s(times.waits, 0.95),
                series.quantile_s(times.runs, 0.5),
                series.quantile_s(times.runs, 0.95),
            )
        )
    return points


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def columns(points: Sequence[Point], step: int = series.FINE) -> dict[str, Any]:
    """As JSON, a list for each value: `ended`, `failed` within a step of `step_s`; what was queued and running as it began; seconds."""
    return {
        "step_s": step * 60,
        "first_ms": points[0].at_ms if points else None,
        "ended": [one.ended for one in points],
        "failed": [one.failed for one in points],
        "queued": [one.queued for one in points],
        "running": [one.running for one in points],
        "oldest_s": [one.oldest_s for one in points],
        **{
            name: [None if (value := getattr(one, name)) is None else round(value, 4) for one in points]
            for name in QUANTILES
        },
    }
