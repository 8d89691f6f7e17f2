"""What pages show of values: texts made harmless, numbers, groups, alerts."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upnext.core import reports
from upnext.core.outcome import ErrorInfo, JobStatus
from upnext.core.series import Point
from upnext.dashboard import formatting, shapes, sparklines
from upnext.dashboard.alerts import alerts
from upnext.dashboard.pages import failures_tile, timeline
from upnext.dashboard.source import Daemon, Memory, Snapshot
from upnext.engine.views.jobs import Job
from upnext.engine.views.tasks import Task
from upnext.engine.views.workers import Consumer

NOW_MS = 1_700_000_000_000


@given(
    st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.none(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_pretty_json_reads_back_and_hides_nothing(value: object) -> None:
    text = shapes.pretty(value)
    assert orjson.loads(text) == value
    assert all(char == "\n" or char.isprintable() for char in text)


@given(st.text())
def test_shown_text_has_no_invisible_character(text: str) -> None:
    shown = formatting.shown(text)
    assert not any(char in shown for char in "\x1b\x07\u202e\u2066\x00\x9b")


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert formatting.shown("x" * 3000, 10) == "x" * 10 + "… (2,990 more characters)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0042, "4.2 ms"),
        (3.21, "3.21 s"),
        (75, "1 min 15 s"),
        (7200, "2 h"),
        (90_000, "1 d 1 h"),
        (-5, "–5 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0, "0"), (9_999, "9,999"), (0.046, "0.046")])
def test_numbers(value: float | None, text: str) -> None:
    assert formatting.number(value) == text


def test_a_large_number_is_short_and_exact_on_hover() -> None:
    assert formatting.number(1_234_567) == '<span title="1,234,567">1.23M</span>'


@pytest.mark.parametrize("at_ms", [10**30, float("nan")])
def test_a_moment_that_cannot_be_is_a_dash(at_ms: float) -> None:
    assert formatting.when(at_ms) == "–"


def test_a_line_breaks_where_nothing_is_known() -> None:
    assert [len(run) for run in sparklines.points([1, 2, None, 3])] == [2, 1]
    assert "<script>" not in sparklines.sparkline([1, 2], "<script>")


def test_a_role_without_payloads_gets_none() -> None:
    one = Job(
        "a:n1-1", "a", JobStatus.DEAD, payload=b'{"card": 1}', error=ErrorInfo("E", "card 1", "card 1"), value=b"1"
    )
    shape = shapes.job(one, payload=False)
    assert "card" not in orjson.dumps(shape).decode()
    assert shapes.job(one, payload=True)["arguments"] == {"card": 1}


# -- alerts -------------------------------------------------------------------------------------------------------------------------------


def task(name: str, *, queued: int = 0, paused: bool = False) -> Task:
    return Task(name, "task", "s", "", None, queued, 0, 0, 0, 0, 0, 0.0, paused, None, {})


def consumer(*tasks: str, alive: bool = True, version: str = "1") -> Consumer:
    return Consumer("c", alive, "d", "shop", "h", 1, "w", "s", tasks, 1, 1, "worker-1", 1, version)


def snapshot(*tasks: Task, consumers: tuple[Consumer, ...] = (), daemons: tuple[Daemon, ...] = ()) -> Snapshot:
    return Snapshot(NOW_MS, tasks, consumers, daemons, (), 0, 0, counted=True)


def slot(name: str, **changes: object) -> dict[str, object]:
    plain = {"slot": name, "role": "worker", "state": "READY", "heartbeat_age_s": 1.0, "in_flight": [], "generation": 2}
    return {**plain, **changes}


def status(**changes: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "mode": "running",
        "ready_workers": 2,
        "desired_workers": 2,
        "broker": {"connected": True, "url": "redis://x"},
        "problem": None,
        "children": [],
    }
    return {**plain, **changes}


def daemon(status: dict[str, object]) -> Daemon:
    """One that lives and has reported this of itself."""
    report = reports.of_status("d", status, "h", NOW_MS)
    return Daemon("d", "h", "shop", alive=True, report=report, consumers=(consumer("a"),))


def titles(found: Snapshot, oldest_ms: dict[str, int] | None = None, new_dead: int = 0) -> list[str]:
    return [one.title for one in alerts(found, oldest_ms or {}, new_dead)]


@pytest.mark.parametrize(("failed", "dead_lately", "shown"), [((None, None), 3, 3), ((2, 3), 1, 5), ((0, 0), 0, 0)])
def test_a_failure_of_this_minute_counts(failed: tuple[int | None, ...], dead_lately: int, shown: int) -> None:
    points = [Point(NOW_MS, 9, one, 0, 0, None, None, None, None, None) for one in failed]
    assert failures_tile(points, dead_lately)["value"] == shown


def test_a_quiet_system_has_no_alert() -> None:
    found = daemon(status())
    assert (
        titles(snapshot(task("a", queued=5), consumers=(consumer("a"),), daemons=(found,)), {"a": NOW_MS - 5_000}) == []
    )


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"ready_workers": 1}, "shop on h lacks workers."),
        ({"broker": {"connected": False, "url": "u"}}, "shop on h does not reach the broker."),
        ({"problem": "no template"}, "shop on h:"),
        ({"mode": "paused"}, "shop on h is paused."),
        (
            {
                "children": [
                    {"slot": "worker-1", "role": "worker", "state": "READY", "heartbeat_age_s": 90.0, "in_flight": []}
                ]
            },
            "worker-1 of shop on h hangs.",
        ),
        (
            {
                "children": [
                    {"slot": "worker-1", "role": "worker", "state": "HUNG", "heartbeat_age_s": 3.0, "in_flight": []}
                ]
            },
            "worker-1 of shop on h hangs.",
        ),
    ],
)
def test_what_a_daemon_says_of_itself(changes: dict[str, object], title: str) -> None:
    assert titles(snapshot(daemons=(daemon(status(**changes)),))) == [title]


def test_workers_of_another_generation_are_named() -> None:
    children = [slot("worker-1"), slot("worker-2", generation=1), slot("worker-3", generation=1, state="DRAINING")]
    [one] = alerts(snapshot(daemons=(daemon(status(generation=2, children=children)),)), {}, 0)
    assert (one.title, one.text) == ("shop on h runs several generations.", "worker-2 not of generation 2.")
    assert titles(snapshot(daemons=(daemon(status(generation=2, children=children[:1])),))) == []


@pytest.mark.parametrize(("used", "most", "found"), [(90, 100, True), (89, 100, False), (90, 0, False)])
def test_a_broker_that_is_nearly_full_is_an_alert(used: int, most: int, found: bool) -> None:
    known = replace(snapshot(), memory=Memory(used << 20, most << 20))
    assert titles(known) == (["The broker is nearly full."] if found else [])


def test_a_daemon_whose_leases_have_ended_is_gone() -> None:
    one = Daemon("d", "h", "shop", alive=False, report=None, consumers=(consumer("a", alive=False),))
    assert titles(snapshot(daemons=(one,))) == ["shop on h is gone."]


def test_jobs_that_nobody_can_run_come_before_jobs_that_wait_long() -> None:
    found = snapshot(task("slow", queued=1), task("lost", queued=1), consumers=(consumer("slow"),))
    assert titles(found, {"slow": NOW_MS - 90_000}) == ["No worker serves lost.", "Jobs of slow wait long."]


def test_several_versions_of_one_daemon_are_named() -> None:
    daemons = tuple(
        Daemon(version, version, "shop", alive=True, report=None, consumers=(consumer("a", version=version),))
        for version in ("1", "2")
    )
    assert titles(snapshot(daemons=daemons)) == ["shop runs in several versions of upnext:"]


def test_apis_of_all_daemons() -> None:
    front = {"name": "front", "url": "http://127.0.0.1:8000", "processes": 2, "ready": 1}
    names = ("api-front-1", "api-front-2", "api-other-1")
    slots = [reports.blank_slot(name, "api", "READY") for name in names]
    rows = shapes.apis(snapshot(daemons=(daemon(status(children=slots, apis=[front, "garbage"])), daemon(status()))))
    assert [(row["name"], row["url"], row["ready"], len(row["slots"])) for row in rows] == [
        ("front", "http://127.0.0.1:8000", 1, 2)
    ]


def test_a_timeline_names_the_processes_that_ended_under_a_job() -> None:
    shown = shapes.job(
        Job("pay:n1-1", "pay", JobStatus.RUNNING, 1, submitted_ms=NOW_MS, started_ms=NOW_MS + 9, crashes=2, cause="signal:SIGKILL"),
        payload=False,
    )  # fmt: skip
    death = {
        "at_ms": NOW_MS + 5,
        "target": "worker-1",
        "who": "shop on web-1",
        "what": "process 7 ended: signal:SIGKILL",
    }
    found = timeline(shown, [death])
    assert [one["what"] for one in found] == [
        "Submitted",
        "Its process ended: worker-1, shop on web-1",
        "Crashed 2 times before",
        "Attempt 1 started",
    ]
    assert found[1]["text"] == death["what"]
    assert "Crashed once before" in [one["what"] for one in timeline({**shown, "crashes": 1})]


def test_a_viewer_sees_that_a_job_has_labels_and_not_their_values() -> None:
    own = {"labels": {"tenant": "acme"}}
    one = Job("pay:n1-1", "pay", JobStatus.QUEUED, 1, own=own)
    assert shapes.job(one, payload=True)["labels"] == {"tenant": "acme"}
    assert shapes.job(one, payload=False)["labels"] == {"tenant": shapes.HIDDEN}
