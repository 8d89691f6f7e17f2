"""Calls about tasks over time: sample, note_times, read_series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upnext.core import series
from upnext.core.keys import Keys
from upnext.core.series import Sample, Times
from upnext.engine.calls.rows import lenient, pairs
from upnext.engine.redis.scripts import Arg, Call, script, text

TASKS_A_CALL = 50
MOMENTS_A_CALL = 60
SERIES_BYTES = 512 * 1024
"""Of short rows, which cost more than jobs of their size."""
MOST_NOTED = 50
"""Tasks whose times one call adds."""


def sample(keys: Keys, epoch: str, moment: int, step: int, cursor: str) -> Call[str]:
    """Write down a page of tasks at `moment` (minutes). -> next cursor, "0" at the end."""
    return Call(
        script("sample"),
        [
            keys.epoch,
            keys.tasks,
            keys.stats,
            keys.series_last(step),
            keys.series(step, moment),
            keys.series(step, moment - step),
        ],
        [epoch, keys.stream_prefix, cursor, TASKS_A_CALL, series.KEPT_S[step]],
        text,
    )


def note_times(keys: Keys, now_ms: int, noted: Mapping[str, Times]) -> Call[int]:
    """Add what attempts took, at most MOST_NOTED tasks. -> how many tasks."""
    steps = (series.FINE, series.COARSE)
    words: list[Arg] = [series.KEPT_S[step] for step in steps]
    for task, times in noted.items():
        words += (task, times.encode())
    return Call(script("note_times"), [keys.times(step, series.at(now_ms, step)) for step in steps], words, int)


@dataclass(frozen=True, slots=True)
class Moment:
    """What is kept of one moment, by task. `sampled`: a task without a row stood still."""

    sampled: bool
    samples: dict[str, Sample]
    times: dict[str, Times]


def read_series(
    keys: Keys, step: int, moments: Sequence[int], task: str | None
) -> Call[tuple[dict[str, Sample], list[Moment]]]:
    """-> (the last sample of each task that was written, what is kept of the first of these moments: at least one)."""

    def samples(flat: list[Any]) -> dict[str, Sample]:
        found = ((lenient(name), series.decode(row)) for name, row in pairs(flat))
        return {name: row for name, row in found if row is not None}

    def parse(reply: list[Any]) -> tuple[dict[str, Sample], list[Moment]]:
        found = [
            Moment(
                series.SAMPLED.encode() in rows[::2],
                samples(rows),
                {lenient(name): Times.decode(row) for name, row in pairs(times)},
            )
            for rows, times in zip(reply[1::2], reply[2::2], strict=True)
        ]
        return samples(reply[0]), found

    names = [
        name for moment in moments[:MOMENTS_A_CALL] for name in (keys.series(step, moment), keys.times(step, moment))
    ]
    return Call(script("read_series"), [keys.series_last(step), *names], [task or "", SERIES_BYTES], parse)
