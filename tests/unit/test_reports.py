"""What a daemon reports of itself: rows, what they are read as, and when it counts as gone."""

from __future__ import annotations

from typing import Any

import pytest

from upnext.core import reports
from upnext.core.reports import Report

NOW_MS = 1_800_000_000_000


def slot(name: str = "worker-1", *, state: str = "READY", jobs: int = 0, role: str = "worker") -> dict[str, Any]:
    running = [{"job_id": f"t:n{number}-0", "task": "t", "age_s": float(number)} for number in range(jobs)]
    return {"slot": name, "role": role, "state": state, "in_flight": running}


def status(*slots: dict[str, Any]) -> dict[str, Any]:
    return {"pid": 7, "name": "shop", "version": "1", "mode": "running", "children": list(slots), "protocol": 1}


def reread(*slots: dict[str, Any]) -> Report:
    fields = dict(reports.rows(status(*slots), "web-1", "token"))
    found = reports.parse("d", {**fields, "seen_ms": str(NOW_MS).encode()})
    assert found is not None
    return found


def test_a_report_reads_back_as_it_was() -> None:
    found = reread(slot("scheduler", role="scheduler"), slot("worker-10"), slot("worker-2", jobs=2))
    assert (found.daemon, found.host, found.name, found.seen_ms) == ("d", "web-1", "shop", NOW_MS)
    assert (found.about["mode"], found.about["pid"]) == ("running", 7)
    assert [one["slot"] for one in found.slots] == ["worker-2", "worker-10", "scheduler"]
    assert found.slots[0]["in_flight_count"] == 2


def test_the_oldest_jobs_of_a_slot_are_named_and_all_counted() -> None:
    [found] = reread(slot(jobs=50)).slots
    assert [one["age_s"] for one in found["in_flight"]] == [float(age) for age in range(49, 29, -1)]
    assert found["in_flight_count"] == 50


def test_a_long_report_is_bounded() -> None:
    rows = reports.rows(status(*(slot(f"worker-{number}", jobs=20) for number in range(2_000))), "h", "t")
    assert len(rows) == reports.MOST_SLOTS + 1
    assert sum(len(row) for _, row in rows) < reports.MOST_BYTES + 2_000 + reports.MOST_SLOTS * 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"daemon": b"{}"},
        {"daemon": b"no json", "seen_ms": b"1"},
        {"daemon": b"[]", "seen_ms": b"1"},
        {"daemon": b"{}", "seen_ms": b"soon"},
        {"daemon": b"{}", "seen_ms": b"1", "slot:worker-1": b"7"},
    ],
)
def test_what_cannot_be_read_is_none(fields: dict[str, bytes]) -> None:
    assert reports.parse("d", fields) is None


@pytest.mark.parametrize(
    ("state", "leased", "age_ms", "lives"),
    [
        ("READY", True, 10**9, True),
        ("READY", False, 9_000, True),
        ("READY", False, 11_000, False),
        ("BACKOFF", False, 70_000, True),
        ("BACKOFF", False, 80_000, False),
    ],
)
def test_leases_say_first_that_a_daemon_is_gone(state: str, leased: bool, age_ms: int, lives: bool) -> None:
    assert reports.lives(reread(slot(state=state)), leased=leased, now_ms=NOW_MS + age_ms) is lives
