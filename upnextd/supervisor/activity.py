"""What happened to this daemon lately, for people: the scheduler takes it to the queue with its reports.

The events of the control socket tell programs everything; here is what an operator wants to know, a line each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from upnext.core.counted import counted

KEPT = 50
"""Events wait here until a scheduler has written them: so many, the newest, while the broker is away."""
MOST_TEXT = 500
MOST_JOBS = 8
"""So many jobs that a process had are named."""

Json = dict[str, Any]


class Activity:
    """The newest events. Each has a number, one more than the one before; `life` tells this program's numbers from those before it."""

    def __init__(self, life: int) -> None:
        self._life = life
        self._number = 0
        self._kept: deque[Json] = deque(maxlen=KEPT)
        self._fell: set[str] = set()
        """Slots whose process ended by itself and is not back."""

    def note(self, kind: str, fields: Mapping[str, Any], at_ms: int) -> None:
        """Keep an event of the control socket, if an operator wants to know of it."""
        slot = str(fields.get("slot") or "")
        if (kind == "child_ready" and slot not in self._fell) or (kind == "child_exited" and fields["asked"]):
            return
        words = _WORDS.get(kind)
        if words is None:
            return
        if kind == "child_exited":
            self._fell.add(slot)
        elif kind == "child_ready":
            self._fell.discard(slot)
        self._number += 1
        self._kept.append(
            {"number": self._number, "at_ms": at_ms, "kind": kind, "slot": slot, "text": words(fields)[:MOST_TEXT]}
        )

    def as_json(self) -> Json:
        """As the scheduler gets it."""
        return {"life": self._life, "events": list(self._kept)}


def _exited(fields: Mapping[str, Any]) -> str:
    jobs = list(fields["jobs"])
    had = f"; {counted(len(jobs), 'job')} had started: {', '.join(jobs[:MOST_JOBS])}" if jobs else ""
    return f"process {fields['pid']} ended: {fields['cause']}{had}"


def _broker(fields: Mapping[str, Any]) -> str:
    return "the broker is reached" if fields["connected"] else "the broker is away"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "started": lambda fields: f"the daemon started: version {fields['version']}, pid {fields['pid']}",
    "upgraded": lambda fields: f"upgraded in place to version {fields['version']}",
    "child_exited": _exited,
    "child_ready": lambda fields: f"process {fields['pid']} took its place",
    "reload_step": lambda fields: f"generation {fields['generation']}: {fields['step']}",
    "template_missing": lambda fields: f"generation {fields['generation']} has no template: {fields['why']}",
    "mode": lambda fields: f"mode: {fields['mode']}",
    "scale": lambda fields: f"{fields['workers']} workers wanted, {fields['before']} before",
    "restart": lambda fields: f"asked to restart {fields['slot'] or 'every worker'}",
    "broker": _broker,
}
"""Kind of event -> its line; what is missing here (attempts that failed, each fork) is for programs only."""
