"""Rows of a suite: what they are called, where their figure is, what it has to reach; and the table of medians."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

BUSY_PERCENT = 10
"""Repetitions that began while others used more of the machine count only where there is no other."""


@dataclass(frozen=True, slots=True)
class Size:
    """Scales how much work a measure does; `--quick` is a tenth."""

    divisor: int = 1

    @overload
    def __call__(self, full: int) -> int: ...
    @overload
    def __call__(self, full: float) -> float: ...
    def __call__(self, full: float) -> float:
        if isinstance(full, int):
            return max(1, full // self.divisor)
        return full / self.divisor


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to reach."""

    value: float
    least: bool

    @classmethod
    def at_least(cls, value: float) -> Self:
        return cls(value, least=True)

    @classmethod
    def at_most(cls, value: float) -> Self:
        return cls(value, least=False)

    def met(self, value: float) -> bool:
        return value >= self.value if self.least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """`key` is MEASURE.VALUE."""

    title: str
    key: str
    bar: Bar | None = None


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """MEASURE.VALUE -> median over the repetitions on a quiet machine, or over all when none was."""
    of: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if "values" in run:
            of.setdefault(run["measure"], []).append(run)
    found: dict[str, float] = {}
    for measure, all_runs in of.items():
        quiet = [run for run in all_runs if run["others_cpu_percent"] <= BUSY_PERCENT] or all_runs
        for name in quiet[0]["values"]:
            found[f"{measure}.{name}"] = statistics.median(
                run["values"][name] for run in quiet if name in run["values"]
            )
    return found


def busy(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Measures that had no repetition on a quiet machine: their figures mean little."""
    quiet = {run["measure"] for run in runs if run["others_cpu_percent"] <= BUSY_PERCENT}
    return sorted({run["measure"] for run in runs} - quiet)


def markdown(rows: Sequence[Row], figures: Mapping[str, float]) -> Iterator[str]:
    """The table; rows that were not measured are left out."""
    yield "| measured | median | bar | met |"
    yield "|---|---|---|---|"
    for row in rows:
        value = figures.get(row.key)
        if value is None:
            continue
        bar, met = ("", "") if row.bar is None else (str(row.bar), "yes" if row.bar.met(value) else "no")
        yield f"| {row.title} | {text(value)} | {bar} | {met} |"


def text(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
