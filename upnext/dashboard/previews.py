"""What a stop would do to the jobs of a process, before anyone presses the button. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STOP_TIMEOUT_S = 30.0
"""Of a daemon that does not report its own."""

NOTHING = "Nothing runs here: nothing would be cut off. What it has fetched and not started goes back to the queue."


def preview(slots: Sequence[Mapping[str, Any]], usual_s: Mapping[str, float | None], grace_s: float) -> dict[str, Any]:
    """Of running jobs how many would end within `grace_s`, by how long 95 of 100 jobs of their task run (`usual_s`).

    A job that runs longer than is usual counts as one that would be killed: nothing says when it ends.
    """
    named = [job for slot in slots for job in slot["in_flight"]]
    count = sum(slot["in_flight_count"] for slot in slots)
    ends = killed = unknown = 0
    for job in named:
        usual = usual_s.get(job["task"])
        if usual is None:
            unknown += 1
        elif 0 <= usual - job["age_s"] <= grace_s:
            ends += 1
        else:
            killed += 1
    unknown += max(0, count - len(named))
    found = {"in_flight_count": count, "would_end": ends, "would_be_killed": killed, "unknown": unknown}
    return {**found, "grace_s": grace_s, "text": _text(count, ends, killed, unknown, grace_s) if count else NOTHING}


def _text(count: int, ends: int, killed: int, unknown: int, grace_s: float) -> str:
    parts: list[str] = []
    if ends:
        parts.append(f"{ends:,} would end within {grace_s:g} s by {_its(ends)} usual p95")
    if killed:
        parts.append(f"{killed:,} would be killed and run again")
    if unknown:
        known = (
            "it is not known how long it usually runs" if unknown == 1 else "it is not known how long they usually run"
        )
        parts.append(f"of {unknown:,} {known}")
    return f"{'1 job runs' if count == 1 else f'{count:,} jobs run'}; {', '.join(parts)}."


def _its(count: int) -> str:
    return "its" if count == 1 else "their"
