"""Who owns what is registered, and when it goes: decisions about tasks, crons and event handlers, as pure functions.

A *definition* (task, cron or handler) belongs to a service. An *announcer* is a daemon, or a process of `upnext run`: it states all that
its module declares and what of that it serves, renews this every ANNOUNCE_S, and counts as living for ANNOUNCER_LEASE_MS after.

A definition goes

- WITHDRAWN, when newer code of its service no longer declares it and nothing living serves it.
- LAPSED, when it was not announced for long: for LAPSE_MS of its kind where no living announcer of its service knows better (a cron soon,
  for ticks would pile up; handlers and tasks after days, for events wait for workers that are away); for GRACE_MS where newer code doesn't
  declare it, but the daemon that defined it is away and may come back under its id: it could be restarting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from upnext.core.spec import TaskKind

ANNOUNCE_S = 20.0
ANNOUNCER_LEASE_MS = 30_000
"""How long an announcement counts; a little more than one that is late."""
GRACE_MS = 60_000
"""How long a definition of a daemon that stopped is kept from newer code of its service that doesn't declare it."""
LAPSE_MS = {TaskKind.CRON: 60_000, TaskKind.EVENT: 7 * 86_400_000, TaskKind.TASK: 7 * 86_400_000}
"""How long after the lease of its last announcer a definition goes."""
CURSOR_LIFE_MS = 30 * 86_400_000
"""How long a lapsed cron's cursor is kept, so that it catches up when it comes back."""
SKEW_AFTER_MS = 600_000
"""Two codes of one service beside each other for longer are no rolling deploy."""


class Fate(Enum):
    """What becomes of a definition."""

    KEPT = "kept"
    WITHDRAWN = "withdrawn"
    LAPSED = "lapsed"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a definition comes from.

    `daemon` defines it; `returns`: it comes back under this id after a restart. `passing`: of code that is being developed, nothing of it
    lasts.
    """

    daemon: str = ""
    host: str = ""
    file: str | None = None
    returns: bool = True
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Announcer:
    """One daemon's statement. `generation_ms`: when its code was loaded; `declares` maps names to signatures."""

    id: str
    service: str
    generation_ms: int
    until_ms: int
    declares: Mapping[str, str] = field(default_factory=dict[str, str])
    serves: Collection[str] = frozenset()
    host: str = ""
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """One registered name.

    `daemon` defined it: None for one that never comes back under its id, "" where a version that didn't note it wrote it. `seen_ms`: when
    it was announced or registered last. `active`: a cron that fires, a handler that gets events.
    """

    name: str
    kind: TaskKind
    service: str
    generation_ms: int
    seen_ms: int
    daemon: str | None = ""
    passing: bool = False
    active: bool = True


def living(announcers: Iterable[Announcer], now_ms: int) -> list[Announcer]:
    """Return those whose lease is in force."""
    return [one for one in announcers if one.until_ms > now_ms]


def fate(definition: Definition, announcers: Collection[Announcer], served: Collection[str], now_ms: int) -> Fate:
    """Decide about one definition. `announcers` are the living ones; `served` are the names that living consumers fetch."""
    name = definition.name
    if name in served or any(name in one.serves for one in announcers):
        return Fate.KEPT
    own = [one for one in announcers if one.service == definition.service]
    newest = max(own, key=lambda one: one.generation_ms, default=None)
    if newest is not None and name in newest.declares:
        return Fate.KEPT
    unseen_ms = now_ms - definition.seen_ms - ANNOUNCER_LEASE_MS
    if newest is not None and newest.generation_ms > definition.generation_ms:
        waited_for = definition.daemon is not None and not any(one.id == definition.daemon for one in own)
        if not waited_for:
            return Fate.WITHDRAWN
        return Fate.KEPT if unseen_ms < GRACE_MS else Fate.LAPSED
    if any(name in one.declares for one in own):
        return Fate.KEPT
    return Fate.LAPSED if definition.passing or unseen_ms >= LAPSE_MS[definition.kind] else Fate.KEPT


def claimants(name: str, announcers: Iterable[Announcer]) -> list[Announcer]:
    """Return the living announcers that declare or serve a name: while there is one, it can't be forgotten."""
    return [one for one in announcers if name in one.declares or name in one.serves]


@dataclass(frozen=True, slots=True)
class Skew:
    """Codes of one service that differ, side by side since `since_ms`."""

    since_ms: int
    files: tuple[str, ...]
    signatures: tuple[str, ...]
    hosts: tuple[str, ...]


def skews(announcers: Iterable[Announcer], now_ms: int) -> dict[str, Skew]:
    """Return, by task, where living announcers of one service declare it in another file or with another signature for SKEW_AFTER_MS."""
    stated: dict[tuple[str, str], list[Announcer]] = {}
    for one in announcers:
        for name in one.declares:
            stated.setdefault((one.service, name), []).append(one)
    found: dict[str, Skew] = {}
    for (_, name), those in stated.items():
        begun: dict[tuple[str | None, str], int] = {}
        for one in those:
            code = (one.file, one.declares[name])
            begun[code] = min(begun.get(code, one.generation_ms), one.generation_ms)
        if len(begun) < 2:
            continue
        since_ms = sorted(begun.values())[1]
        if now_ms - since_ms >= SKEW_AFTER_MS:
            found[name] = Skew(
                since_ms,
                tuple(sorted({file for file, _ in begun if file})),
                tuple(sorted({signature for _, signature in begun})),
                tuple(sorted({one.host for one in those if one.host})),
            )
    return found


def owner_of(row: Mapping[str, object]) -> str:
    """Return the service that a stored definition belongs to. Versions that had other service names wrote `service`."""
    return str(row.get("owner") or row.get("service") or "")
