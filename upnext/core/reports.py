"""What a daemon reports of itself for all who look at the queue: a row of its own, and one a slot, as `P:daemons:DAEMON` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

REPORT_S = 60.0
"""A daemon that is not looked at reports so often."""
KEPT_S = 3_600
"""So long the report of a daemon that has gone without a word is kept."""
KEPT_PASSING_S = 120
"""The same for a daemon that has another id after a restart."""
WATCHED_S = 10
"""One look makes daemons report with each beat for so long."""
MOST_SLOTS = 500
MOST_JOBS = 20
"""Running jobs of a slot that are named, the oldest."""
MOST_BYTES = 128 << 10
"""The slots of a report that is longer count their further jobs without naming them."""
FRESH_MS = 75_000
"""A daemon that is not looked at has reported within this time."""
LEASE_MS = 10_000
"""As `upnext.engine.worker.membership`: a process that is ready has renewed its lease within this time."""

_DAEMON = "daemon"
_SLOT = "slot:"
_SEEN = "seen_ms"
_OF_ITSELF = (
    "pid",
    "name",
    "version",
    "service",
    "service_name",
    "namespace",
    "mode",
    "generation",
    "desired_workers",
    "ready_workers",
    "exit_when_drained",
    "stop_timeout_s",
    "apis",
    "problem",
    "broker",
)


@dataclass(frozen=True, slots=True)
class Report:
    """One daemon's newest. `seen_ms`: when it came (server ms). `about` is the daemon's `status` without children: `slots`."""

    daemon: str
    seen_ms: int
    about: dict[str, Any]
    slots: tuple[dict[str, Any], ...]

    @property
    def host(self) -> str:
        return str(self.about.get("host") or "")

    @property
    def name(self) -> str:
        return str(self.about.get("name") or self.daemon)


def rows(status: Mapping[str, Any], host: str, token: str) -> list[tuple[str, bytes]]:
    """(field, JSON) of each row of a report. `status`: as of the control socket; `token` names the life of the scheduler that reports."""
    about, slots = _parts(status, host)
    found = [(_DAEMON, orjson.dumps({**about, "token": token}))]
    left = MOST_BYTES
    for slot in slots:
        row = orjson.dumps(slot if left > 0 else {**slot, "in_flight": []})
        found.append((f"{_SLOT}{slot['slot']}", row))
        left -= len(row)
    return found


def of_status(daemon: str, status: Mapping[str, Any], host: str, seen_ms: int) -> Report:
    """What the daemon would report now."""
    about, slots = _parts(status, host)
    return Report(daemon, seen_ms, about, tuple(slots))


def _parts(status: Mapping[str, Any], host: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    about = {**{field: status.get(field) for field in _OF_ITSELF}, "host": host}
    slots: list[dict[str, Any]] = []
    for child in list(status.get("children", ()))[:MOST_SLOTS]:
        running = sorted(child["in_flight"], key=lambda job: -float(job["age_s"]))
        count = child.get("in_flight_count", len(running))
        slots.append({**child, "in_flight": running[:MOST_JOBS], "in_flight_count": count})
    return about, slots


def parse(daemon: str, fields: Mapping[str, bytes]) -> Report | None:
    """What `rows` made; None for what can't be read."""
    try:
        about = _object(fields[_DAEMON])
        slots = [_object(raw) for field, raw in fields.items() if field.startswith(_SLOT)]
        seen_ms = int(fields[_SEEN])
    except (KeyError, ValueError):
        return None
    shown = [slot for slot in slots if isinstance(slot.get("slot"), str) and isinstance(slot.get("in_flight"), list)]
    return Report(daemon, seen_ms, about, tuple(sorted(shown, key=_order)))


def lives(report: Report, *, leased: bool, now_ms: int) -> bool:
    """Whether the daemon is there. `leased`: some consumer of it has its lease.

    The leases say it within seconds where a worker was ready; else the report itself, which comes once a minute.
    """
    if leased:
        return True
    ready = any(slot.get("role") == "worker" and slot.get("state") == "READY" for slot in report.slots)
    return now_ms - report.seen_ms < (LEASE_MS if ready else FRESH_MS)


def _object(raw: bytes) -> dict[str, Any]:
    value = orjson.loads(raw)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast("dict[str, Any]", value)


_ROLES: Sequence[str] = ("worker", "api", "scheduler", "template", "broker", "metrics", "dashboard")


def _order(slot: Mapping[str, Any]) -> tuple[int, str, int]:
    """Workers first, by their number."""
    name, _, number = str(slot["slot"]).partition("-")
    role = slot.get("role")
    return (
        _ROLES.index(role) if role in _ROLES else len(_ROLES),
        name if name != "worker" else "",
        int(number) if number.isdecimal() else 0,
    )


def blank_slot(
    slot: str, role: str, state: str, *, pid: int | None = None, generation: int | None = None
) -> dict[str, Any]:
    """A slot of which nothing more is known, in the shape of the children of a daemon's status."""
    return {
        "slot": slot,
        "role": role,
        "pid": pid,
        "state": state,
        "generation": generation,
        "incarnation": 0,
        "uptime_s": None,
        "heartbeat_age_s": None,
        "in_flight": [],
        "in_flight_count": 0,
        "jobs_done": 0,
        "jobs_failed": 0,
        "rss_bytes": None,
        "pss_bytes": None,
        "restarts": 0,
        "last_exit": None,
    }
