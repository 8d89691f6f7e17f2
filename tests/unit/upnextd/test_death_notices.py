"""Causes of death, notices, and the hang watch."""

from __future__ import annotations

import pytest

from upnextd.rules.hangs import Heart, Pulse, due, forgive, look
from upnextd.shared.messages import Died, StartedJob
from upnextd.shared.process import ExitStatus
from upnextd.shared.scoreboard import RunningJob
from upnextd.supervisor.death_notices import Death, PendingDeathNotices, notice

KILLED = ExitStatus(None, "SIGKILL")


@pytest.mark.parametrize(
    ("death", "cause", "shown", "charge"),
    [
        (Death(ExitStatus(None, "SIGSEGV")), "signal:SIGSEGV", "signal", True),
        (Death(ExitStatus(3, None)), "exit:3", "exit", True),
        (Death(ExitStatus(0, None)), "exit:0", "exit", True),
        (Death(KILLED, oom=True), "oom", "oom", True),
        (Death(ExitStatus(None, "SIGABRT"), hung=True), "hung", "hung", True),
        (Death(KILLED, asked=True, hung=True), "hung", "hung", True),
        (Death(ExitStatus(0, None), asked=True), "stopped", "exit", False),
        (Death(KILLED, asked=True), "stopped", "signal", False),
        (Death(ExitStatus(0, None), asked=True, reason="reloaded"), "stopped", "reloaded", False),
        (Death(None), "unknown", "exit", True),
    ],
)
def test_causes(death: Death, cause: str, shown: str, charge: bool) -> None:
    assert (death.cause, death.shown_cause, death.charge) == (cause, shown, charge)


def test_a_notice_has_the_started_jobs() -> None:
    ended = RunningJob("t:n1-1", "t", "n", "1-1", 2.5)
    reported = notice("c1", Death(KILLED), [RunningJob("t:n1-2", "t", "b", "9-0", 1.5)], "stack", "c0", 3, [ended])
    assert reported == Died(
        consumer="c1",
        cause="signal:SIGKILL",
        charge=True,
        started=(StartedJob(task="t", lane="b", entry_id="9-0", job_id="t:n1-2", age_s=1.5),),
        detail="stack",
        crash="c0",
        suspects=3,
        ended=(StartedJob(task="t", lane="n", entry_id="1-1", job_id="t:n1-1", age_s=2.5),),
    )


def test_notices_stay_until_they_are_acknowledged() -> None:
    notices = PendingDeathNotices()
    notices.add(notice("c1", Death(KILLED), [], "", "c0", 0))
    notices.add(notice("c2", Death(KILLED), [], "", "c0", 0))
    notices.acknowledge("c1")
    notices.acknowledge("unknown")
    assert [death.consumer for death in notices.pending] == ["c2"]
    assert len(notices) == 1


def test_a_beating_heart_is_fine() -> None:
    heart = Heart(0, 0.0)
    for now in range(1, 100):
        heart, pulse = look(heart, now, float(now), 2.0)
        assert pulse is Pulse.FINE


def test_each_hang_is_reported_once() -> None:
    heart, reported = Heart(5, 0.0), []
    for tenth in range(100):
        heart, pulse = look(heart, 5, tenth / 10, 2.0)
        if pulse is not Pulse.FINE:
            reported.append((tenth / 10, pulse))
    assert reported == [(2.0, Pulse.HUNG), (4.0, Pulse.HUNG_ON)]


def test_a_recovered_heart_starts_anew() -> None:
    heart, _ = look(Heart(5, 0.0), 5, 3.0, 2.0)
    assert heart.reported is Pulse.HUNG
    heart, pulse = look(heart, 6, 3.1, 2.0)
    assert (heart, pulse) == (Heart(6, 3.1), Pulse.FINE)


def test_a_held_up_supervisor_blames_no_child() -> None:
    heart = forgive(Heart(5, 0.0), 60.0)
    assert look(heart, 5, 61.0, 2.0)[1] is Pulse.FINE


@pytest.mark.parametrize(("reported", "at"), [(Pulse.FINE, 12.0), (Pulse.HUNG, 14.0), (Pulse.HUNG_ON, None)])
def test_when_a_heart_has_something_due(reported: Pulse, at: float | None) -> None:
    assert due(Heart(1, 10.0, reported), 2.0) == at
