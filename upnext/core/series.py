"""What is known of each task over time: samples of its counters by the minute, and how long its jobs waited and ran.

A sample holds absolute numbers, so that the reader subtracts, and one that was written twice or by two leaders counts once. A task whose
numbers stand still is not written again: `filled` says what that means. Two steps of time: a minute, kept for 3 hours, and 15 minutes, kept
for 7 days.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

FINE, COARSE = 1, 15
"""Minutes of a step."""
POINTS = {FINE: 180, COARSE: 672}
"""So many steps are kept."""
KEPT_S = {step: (POINTS[step] + 2) * step * 60 for step in POINTS}
SAMPLED = "="
"""The field that says that all tasks were sampled at that time: no task is called so."""


def at(now_ms: int, step: int) -> int:
    """When the step of this moment began, in minutes since 1970."""
    return now_ms // 60_000 // step * step


@dataclass(frozen=True, slots=True)
class Sample:
    """A task at one moment: ends ever by kind, attempts that were put back, and what waits and runs.

    `oldest_s`: how long the oldest waits.
    """

    done: int
    failed: int
    cancelled: int
    dead: int
    retried: int
    queued: int
    running: int
    oldest_s: float

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.cancelled + self.dead

    @property
    def in_error(self) -> int:
        """Failed for good, or crashed too often."""
        return self.failed + self.dead


def decode(row: bytes) -> Sample | None:
    """Eight numbers, as `lua/sample.lua` writes them; None for anything else."""
    parts = row.split()
    if len(parts) != 8 or not all(part.isdigit() and len(part) < 16 for part in parts):
        return None
    *counts, oldest_ms = map(int, parts)
    return Sample(*counts, oldest_s=oldest_ms / 1000)


def filled(
    moments: Sequence[int], sampled: Mapping[int, bool], rows: Mapping[int, Sample], last: Sample | None
) -> list[Sample | None]:
    """The sample of each moment, oldest first; None for one at which none was taken.

    A moment that was sampled and has no row: the task stood still since the row before it. What stands before the first row is equal
    to it (a change also writes what was before); without any row it is the `last` one that was ever written.
    """
    known = next((rows[moment] for moment in moments if moment in rows), last)
    found: list[Sample | None] = []
    for moment in moments:
        known = rows.get(moment, known)
        found.append(known if moment in rows or sampled.get(moment) else None)
    return found


# -- how long: a histogram ----------------------------------------------------------------------------------------------------------------

_UNIT_MS = 0.1
MOST_BUCKET = 63
_TOKEN = re.compile(rb"([sr])(\d{1,2})=(\d{1,15})")


def bucket(seconds: float) -> int:
    """The bucket of a time: two for each doubling, from a tenth of a millisecond on."""
    units = int(max(0.0, seconds) * 1000 / _UNIT_MS)
    return min((units * units).bit_length(), MOST_BUCKET)


def bounds_s(number: int) -> tuple[float, float]:
    """From and to, in seconds."""
    if number == 0:
        return 0.0, _UNIT_MS / 1000
    return 2 ** ((number - 1) / 2) * _UNIT_MS / 1000, 2 ** (number / 2) * _UNIT_MS / 1000


class Quantiles(NamedTuple):
    """How long half and 95 of 100 attempts waited and ran; None without attempts."""

    wait_p50_s: float | None = None
    wait_p95_s: float | None = None
    run_p50_s: float | None = None
    run_p95_s: float | None = None


@dataclass(slots=True)
class Times:
    """How many attempts waited (`s`: until their start) and ran (`r`) for how long, by bucket."""

    waits: dict[int, int] = field(default_factory=dict[int, int])
    runs: dict[int, int] = field(default_factory=dict[int, int])

    def note(self, wait_s: float, run_s: float, weight: int = 1) -> None:
        for counts, seconds in ((self.waits, wait_s), (self.runs, run_s)):
            number = bucket(seconds)
            counts[number] = counts.get(number, 0) + weight

    def add(self, other: Times) -> None:
        for counts, others in ((self.waits, other.waits), (self.runs, other.runs)):
            for number, count in others.items():
                counts[number] = counts.get(number, 0) + count

    def quantiles(self) -> Quantiles:
        """To a tenth of a millisecond, the smallest bucket."""
        both = [quantile_s(counts, share) for counts in (self.waits, self.runs) for share in (0.5, 0.95)]
        return Quantiles(*(None if seconds is None else round(seconds, 4) for seconds in both))

    def encode(self) -> str:
        """`s12=3 r20=8`, as `lua/note_times.lua` adds them up."""
        parts = [f"s{number}={count}" for number, count in sorted(self.waits.items())]
        return " ".join(parts + [f"r{number}={count}" for number, count in sorted(self.runs.items())])

    @classmethod
    def decode(cls, row: bytes) -> Self:
        """What can't be read is left out."""
        found = cls()
        for letter, number, count in _TOKEN.findall(row):
            counts = found.waits if letter == b"s" else found.runs
            counts[min(int(number), MOST_BUCKET)] = counts.get(int(number), 0) + int(count)
        return found


def quantile_s(counts: Mapping[int, int], share: float) -> float | None:
    """The time below which this share of attempts stayed, as near as the buckets tell (a factor of 1.4); None without attempts."""
    total = sum(counts.values())
    if not total:
        return None
    left = share * total
    for number, count in sorted(counts.items()):
        if count >= left:
            low, high = bounds_s(number)
            return low + (high - low) * left / count
        left -= count
    return bounds_s(max(counts))[1]


# -- what a reader shows ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """One step. `ended`, `failed` (crashed ones, too): how many within it, None where that is unknown; the rest is as it began."""

    at_ms: int
    ended: int | None
    failed: int | None
    queued: int | None
    running: int | None
    oldest_s: float | None
    wait_p50_s: float | None
    wait_p95_s: float | None
    run_p50_s: float | None
    run_p95_s: float | None


def points(moments: Sequence[int], samples: Sequence[Sample | None], took: Mapping[int, Quantiles]) -> list[Point]:
    """One for each moment but the last, which only ends the one before it. `moments` in minutes."""
    found: list[Point] = []
    for moment, now, after in zip(moments, samples, samples[1:], strict=False):
        ended = failed = None
        if now is not None and after is not None:
            ended, failed = max(0, after.ended - now.ended), max(0, after.in_error - now.in_error)
        found.append(
            Point(
                moment * 60_000,
                ended,
                failed,
                now.queued if now is not None else None,
                now.running if now is not None else None,
                now.oldest_s if now is not None else None,
                *took.get(moment, Quantiles()),
            )
        )
    return found
