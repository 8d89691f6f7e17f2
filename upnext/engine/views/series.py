"""Tasks over time, as people look at them: ends, failures, depths, waits and run times by the minute or the quarter of an hour."""

from __future__ import annotations

from collections.abc import Sequence

from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.series import Point, Sample, Times
from upnext.engine.calls import series as calls
from upnext.engine.calls.series import Moment
from upnext.engine.views.jobs import Transport

USUAL_MOMENTS = 96
"""Quarters of an hour that what is usual is taken from: a day."""


def moments(now_ms: int, step: int, count: int) -> list[int]:
    """The beginnings of the last `count` whole steps and of the one that runs, in minutes, oldest first."""
    last = series.at(now_ms, step)
    return list(range(last - count * step, last + step, step))


def read(
    transport: Transport, keys: Keys, step: int, wanted: Sequence[int], task: str | None = None
) -> tuple[dict[str, Sample], dict[int, Moment]]:
    """What is kept of these moments, and the last sample of each task."""
    last: dict[str, Sample] = {}
    found: dict[int, Moment] = {}
    while len(found) < len(wanted):
        part = wanted[len(found) :]
        last, page = transport.run(calls.read_series(keys, step, part, task))
        found |= dict(zip(part, page, strict=False))
    return last, found


def of_task(transport: Transport, keys: Keys, task: str, now_ms: int, step: int) -> list[Point]:
    """Everything that is kept of one task in steps of so many minutes."""
    wanted = moments(now_ms, step, series.POINTS[step])
    last, found = read(transport, keys, step, wanted, task)
    rows = {moment: one.samples[task] for moment, one in found.items() if task in one.samples}
    took = {moment: one.times[task].quantiles() for moment, one in found.items() if task in one.times}
    sampled = {moment: one.sampled for moment, one in found.items()}
    return series.points(wanted, series.filled(wanted, sampled, rows, last.get(task)), took)


def usual(transport: Transport, keys: Keys, task: str, now_ms: int) -> Times:
    """How long attempts of a task waited and ran within the last day."""
    _, found = read(transport, keys, series.COARSE, moments(now_ms, series.COARSE, USUAL_MOMENTS), task)
    total = Times()
    for one in found.values():
        total.add(one.times.get(task) or Times())
    return total
