"""Ends that are no success, by group: what has failed, since when, how often, and which dead letters there are of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from upnext.core import end_groups
from upnext.core.end_groups import About, Group
from upnext.core.keys import Keys
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import DeadCount
from upnext.engine.views.jobs import Job, Transport

_LOOK = 200
_COUNTED = 2_000


def groups(transport: Transport, keys: Keys, task: str | None = None) -> list[Group]:
    """Of one task or of all; those with the newest ends first."""
    found: dict[tuple[str, str], Group] = {}
    cursor = "0"
    while True:
        cursor, page = transport.run(inspect.list_groups(keys, task, cursor, _LOOK))
        found |= {(one.task, one.name): one for one in page}
        if cursor == "0":
            return sorted(found.values(), key=lambda one: (-one.last_ms, one.task, one.name))


@dataclass(slots=True)
class DeadCounter:
    """Counts dead letters by task and group, a slice after the other; `counts` are those of the last whole round.

    A round begins only after the dead letters have changed: what stands still costs nothing.
    """

    counts: dict[tuple[str, str], DeadCount] = field(default_factory=dict[tuple[str, str], DeadCount])
    whole: bool = False
    _cursor: str = "0"
    _partial: dict[tuple[str, str], DeadCount] = field(default_factory=dict[tuple[str, str], DeadCount])
    _state: object = None
    """What the dead letters were when the round began."""

    def step(self, transport: Transport, keys: Keys, state: object, look: int, most_s: float) -> None:
        """Count slices of `look` for up to `most_s` seconds. `state`: something that differs after each change of the dead letters."""
        if self._cursor == "0":
            if self.whole and self._state == state:
                return
            self._state = state
        until_s = time.monotonic() + most_s
        while True:
            self._cursor, page = transport.run(inspect.count_dead(keys, self._cursor, look))
            for one in page:
                before = self._partial.get((one.task, one.group))
                self._partial[one.task, one.group] = one if before is None else _joined(before, one)
            if self._cursor == "0":
                self.counts, self._partial, self.whole = self._partial, {}, True
                return
            if time.monotonic() > until_s:
                return

    def by_task(self) -> dict[str, int]:
        """How many dead letters of each task."""
        found: dict[str, int] = {}
        for one in self.counts.values():
            found[one.task] = found.get(one.task, 0) + one.count
        return found


def _joined(one: DeadCount, other: DeadCount) -> DeadCount:
    newest = other if other.last_ms > one.last_ms else one
    return replace(newest, count=one.count + other.count)


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """Dead letters that are alike. `count`: kept now; `ended`: ends of this kind ever, None where that is unknown."""

    task: str
    group: str
    count: int
    ended: int | None
    first_ms: int | None
    last_ms: int
    job_id: str
    about: About | None


def dead_groups(counts: Iterable[DeadCount], known: Mapping[tuple[str, str], Group]) -> list[DeadGroup]:
    """Counts with what is known of each group, the most frequent first. Pure."""
    found: list[DeadGroup] = []
    for one in counts:
        group = known.get((one.task, one.group))
        found.append(
            DeadGroup(
                one.task,
                one.group,
                one.count,
                group.count if group is not None else None,
                group.first_ms if group is not None else None,
                one.last_ms,
                one.job_id,
                group.about if group is not None else None,
            )
        )
    return sorted(found, key=lambda one: (-one.count, one.task, one.group))


def all_dead_groups(transport: Transport, keys: Keys, task: str | None = None) -> list[DeadGroup]:
    """Count them now: in slices, each of which holds the broker up no longer than another look."""
    counter = DeadCounter()
    while not counter.whole:
        counter.step(transport, keys, None, _COUNTED, 1.0)
    counts = [one for one in counter.counts.values() if task in (None, one.task)]
    known = {(one.task, one.name): one for one in groups(transport, keys, task)}
    return dead_groups(counts, known)


def about(one: Job) -> About:
    """What a dead letter says of its end, where no group does."""
    if one.error is None:
        return About(one.status.value, cause=one.cause or "")
    message = one.error.message[: end_groups.MESSAGE_CAP]
    return About(one.error.type, end_groups.place_in(one.error.traceback), one.cause or "", message)
