"""activity: what a daemon keeps for people until a scheduler has taken it to the queue."""

from __future__ import annotations

import orjson

from upnext.core import activity as rows
from upnextd.supervisor.activity import KEPT, Activity


def died(slot: str = "worker-1", **changes: object) -> dict[str, object]:
    return {"slot": slot, "pid": 7, "cause": "signal SIGKILL", "jobs": ["ship:n1-0"], "asked": False, **changes}


def test_a_death_and_who_took_its_place_are_kept_and_what_is_asked_for_is_not() -> None:
    kept = Activity(1)
    kept.note("child_ready", {"slot": "worker-1", "pid": 7}, 1)  # the first of its slot: nothing happened
    kept.note("child_exited", died(), 2)
    kept.note("child_ready", {"slot": "worker-1", "pid": 8}, 3)
    kept.note("child_exited", died(asked=True, jobs=[]), 4)
    kept.note("child_ready", {"slot": "worker-1", "pid": 9}, 5)
    kept.note("job_failed", {"slot": "worker-1"}, 6)
    events = kept.as_json()["events"]
    assert [(one["number"], one["at_ms"], one["kind"], one["slot"]) for one in events] == [
        (1, 2, "child_exited", "worker-1"),
        (2, 3, "child_ready", "worker-1"),
    ]
    assert events[0]["text"] == "process 7 ended: signal SIGKILL; 1 job had started: ship:n1-0"


def test_it_is_bounded() -> None:
    kept = Activity(1)
    for number in range(KEPT + 5):
        kept.note("mode", {"mode": "x" * 10_000}, number)
    shown = kept.as_json()
    assert (shown["life"], len(shown["events"]), shown["events"][-1]["number"]) == (1, KEPT, KEPT + 5)
    assert len(orjson.dumps(shown)) < 100 << 10


def test_a_scheduler_takes_each_event_once() -> None:
    kept = Activity(5)
    kept.note("mode", {"mode": "paused"}, 1)
    newest, events = rows.fresh(kept.as_json(), (0, 0))
    assert ([one["text"] for one in events], newest) == (["mode: paused"], (5, 1))
    assert rows.fresh(kept.as_json(), newest) == (newest, [])
    kept.note("mode", {"mode": "running"}, 2)
    assert [one["number"] for one in rows.fresh(kept.as_json(), newest)[1]] == [2]
    assert len(rows.fresh(kept.as_json(), (4, 900))[1]) == 2  # another life of the daemon counts anew
    assert rows.fresh(None, newest) == (newest, [])  # a supervisor of an older version


def test_what_is_not_an_event_is_left_out() -> None:
    key, row = rows.encode(
        5, {"number": 3, "at_ms": 1, "kind": "mode", "slot": "", "text": "mode: paused"}, "shop", "h"
    )
    assert key == "5-3"
    assert rows.decode({b"e": row, b"d": b"a"}) == rows.Happened("a", "shop", "h", 1, "mode", "", "mode: paused")
    assert rows.decode({b"e": b"{broken", b"d": b"a"}) is None
    assert rows.decode({b"e": b"{}", b"d": b"a"}) is None
    assert rows.decode({}) is None
