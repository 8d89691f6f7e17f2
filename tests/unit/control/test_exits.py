"""Exit codes are part of the contract."""

from __future__ import annotations

from upnext.control.exits import ExitCode


def test_the_codes_are_those_of_the_contract() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0, "FAILED": 1, "NOT_RUNNING": 3, "DEGRADED": 4, "USAGE": 64, "UNAVAILABLE": 69,
        "CRASH_LOOP": 70, "LOCKED": 73, "TIMEOUT": 75, "CONFIG": 78,
    }  # fmt: skip
