"""Daemons as people see them, on all hosts: what each reports of its slots, and what its consumers say where one reports nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upnext.core import reports
from upnext.core.keys import Keys
from upnext.core.reports import Report
from upnext.engine.calls import daemons as calls
from upnext.engine.views import workers
from upnext.engine.views.jobs import Transport
from upnext.engine.views.workers import Consumer

_AGAIN_S = 0.05
_NEWBORN_MS = 5_000
"""So young a process has reported nothing yet, perhaps; one that is older is of a version that does not report."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One daemon. `report` is None where it is of an older version; `consumers` are those that have registered and are not removed yet."""

    daemon: str
    host: str
    name: str
    alive: bool
    report: Report | None
    consumers: tuple[Consumer, ...]

    @property
    def state(self) -> str:
        """The mode that it is in; `alive` where only its workers are known; `gone`."""
        if not self.alive:
            return "gone"
        return str(self.report.about.get("mode") or "running") if self.report is not None else "alive"

    @property
    def version(self) -> str:
        if self.report is not None and self.report.about.get("version"):
            return str(self.report.about["version"])
        return ", ".join(sorted({one.version for one in self.consumers if one.version})) or "unknown"

    @property
    def seen_ms(self) -> int | None:
        """When its report came (server ms)."""
        return self.report.seen_ms if self.report is not None else None

    @property
    def slots(self) -> list[dict[str, Any]]:
        """In the shape of `children` of a daemon's status. What a process says only by its consumers has no more than its pid."""
        if self.report is not None:
            return list(self.report.slots)
        found = {one.pid: _slot(one) for one in self.consumers}
        return list(found.values())


def daemons(transport: Transport, keys: Keys, *, fresh_s: float = 0.0) -> list[Daemon]:
    """All that are known, by host and name. From now on they report with each beat, for a while.

    fresh_s: where they did not do so before, or are just born, wait for so long at most until they have reported.
    """
    rung = transport.run(calls.watch_daemons(keys))
    until_s, since_ms = time.monotonic() + fresh_s, None
    while True:
        server_ms, found = _reports(transport, keys)
        if rung and since_ms is None:
            since_ms = server_ms
        listed = joined(found, workers.consumers(transport, keys), server_ms)
        if time.monotonic() >= until_s or not any(_is_due(one, since_ms, server_ms) for one in listed):
            return listed
        time.sleep(_AGAIN_S)


def joined(found: Sequence[Report], consumers: Sequence[Consumer], server_ms: int) -> list[Daemon]:
    """Reports with the consumers of the same daemon."""
    of: dict[str, list[Consumer]] = {}
    for one in consumers:
        of.setdefault(one.daemon, []).append(one)
    known: Mapping[str, Report] = {report.daemon: report for report in found}
    listed: list[Daemon] = []
    for daemon in dict.fromkeys([*known, *of]):
        report, own = known.get(daemon), tuple(of.get(daemon, ()))
        leased = any(one.alive for one in own)
        listed.append(
            Daemon(
                daemon,
                host=report.host if report is not None else own[0].host,
                name=report.name if report is not None else own[0].daemon_name,
                alive=leased if report is None else reports.lives(report, leased=leased, now_ms=server_ms),
                report=report,
                consumers=own,
            )
        )
    return sorted(listed, key=lambda one: (one.host, one.name, one.daemon))


def _reports(transport: Transport, keys: Keys) -> tuple[int, list[Report]]:
    found: dict[str, Report] = {}
    after = ""
    while True:
        after, server_ms, page = transport.run(calls.list_daemons(keys, after))
        found |= {one.daemon: one for one in page}
        if not after:
            return server_ms, list(found.values())


def _is_due(one: Daemon, since_ms: int | None, now_ms: int) -> bool:
    """Whether it will report at any moment: one that lives and was asked to at `since_ms`, or one that is just born."""
    if one.report is None:
        return one.alive and any((consumer.since_ms or 0) > now_ms - _NEWBORN_MS for consumer in one.consumers)
    return one.alive and since_ms is not None and one.report.seen_ms < since_ms


def _slot(one: Consumer) -> dict[str, Any]:
    state = "alive" if one.alive else "gone"
    return reports.blank_slot(one.slot or f"pid-{one.pid}", "worker", state, pid=one.pid, generation=one.generation)
