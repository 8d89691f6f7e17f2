"""Which SIGKILL was the kernel's, for memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from upnextd.rules.oom import LAPSE_S, OomKills, claim, read, suspicious
from upnextd.shared import cgroups
from upnextd.shared.process import ExitStatus
from upnextd.supervisor.death_notices import Death


@pytest.mark.parametrize(
    ("signal", "ours", "verdict"),
    [
        ("SIGKILL", False, True),
        ("SIGKILL", True, False),
        ("SIGSEGV", False, False),
        ("SIGSEGV", True, False),
        (None, False, False),
        (None, True, False),
    ],
)
def test_only_a_foreign_sigkill_is_suspicious(signal: str | None, ours: bool, verdict: bool) -> None:
    assert suspicious(signal, ours=ours) is verdict


def test_each_kill_explains_one_death() -> None:
    kills = read(OomKills(5), 7, 10.0)
    kills, first = claim(kills)
    kills, second = claim(kills)
    kills, third = claim(kills)
    assert (first, second, third) == (True, True, False)


def test_kills_of_an_earlier_life_explain_nothing() -> None:
    kills = read(OomKills(5), 5, 10.0)
    assert claim(kills)[1] is False


def test_a_kill_that_nobody_claims_lapses() -> None:
    kills = read(OomKills(0), 1, 10.0)
    assert claim(read(kills, 1, 10.0 + LAPSE_S - 0.1))[1] is True
    assert claim(read(kills, 1, 10.0 + LAPSE_S))[1] is False


def test_a_counter_that_went_back_starts_anew() -> None:
    kills = read(OomKills(9), 1, 10.0)
    assert claim(kills)[1] is False
    assert claim(read(kills, 2, 10.0))[1] is True


def test_a_counter_that_could_not_be_read_says_nothing() -> None:
    kills = read(OomKills(7), None, 10.0)
    assert claim(read(kills, 7, 10.0))[1] is False
    assert claim(read(OomKills(), 7, 10.0))[1] is False, "the first reading is only a start"


def test_a_flood_of_kills_stays_bounded() -> None:
    kills = OomKills()
    for counter in range(0, 100_000, 1000):
        kills = read(kills, counter, 10.0)
    assert len(kills.unclaimed) <= 64


SEGV = ExitStatus(None, "SIGSEGV")
KILL = ExitStatus(None, "SIGKILL")
ABRT = ExitStatus(None, "SIGABRT")
LEFT = ExitStatus(3, None)


@pytest.mark.parametrize(
    ("death", "shown", "cause", "charge"),
    [
        (Death(SEGV), "signal", "signal:SIGSEGV", True),
        (Death(LEFT), "exit", "exit:3", True),
        (Death(KILL, oom=True), "oom", "oom", True),
        (Death(KILL), "signal", "signal:SIGKILL", True),
        (Death(ABRT, hung=True), "hung", "hung", True),
        (Death(KILL, hung=True, asked=True), "hung", "hung", True),
        (Death(KILL, asked=True), "signal", "stopped", False),
        (Death(LEFT, asked=True, reason="recycled"), "recycled", "stopped", False),
        (Death(LEFT, asked=True, reason="reloaded"), "reloaded", "stopped", False),
        (Death(SEGV, reason="recycled"), "signal", "signal:SIGSEGV", True),
        (Death(None), "exit", "unknown", True),
    ],
)
def test_what_a_death_is_called(death: Death, shown: str, cause: str, charge: bool) -> None:
    assert (death.shown_cause, death.cause, death.charge) == (shown, cause, charge)


def test_both_versions_of_the_interface_are_read(tmp_path: Path) -> None:
    proc, root, vmstat = tmp_path / "cgroup", tmp_path / "fs", tmp_path / "vmstat"
    vmstat.write_text("nr_free 9\noom_kill 4\n")

    def count(groups: str) -> int | None:
        proc.write_text(groups)
        return cgroups.oom_kills(str(proc), str(root), str(vmstat))

    assert count("0::/a/b\n") == 4, "no controller there: the machine's own count"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert count("0::/a/b\n") == 2
    (root / "memory" / "m").mkdir(parents=True)
    (root / "memory" / "m" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert count("4:cpu,memory:/m\n0::/\n") == 1
    proc.unlink()
    assert cgroups.oom_kills(str(proc), str(root), str(vmstat)) == 4
    assert cgroups.oom_kills(str(proc), str(root), str(tmp_path / "none")) is None
