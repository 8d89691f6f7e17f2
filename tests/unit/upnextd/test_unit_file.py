"""What the unit makes of each way that upnextd ends, as the table in the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

from upnext.control.exits import ExitCode
from upnext.engine.calls.lease import MOST_LOST_HOSTS

ROOT = Path(__file__).parents[3]
UNIT = (ROOT / "systemd" / "upnextd@.service").read_text()
DOCS = (ROOT / "docs" / "signals-and-exit-codes.md").read_text()
OF_CTL_ALONE = {ExitCode.NOT_RUNNING, ExitCode.DEGRADED}


def setting(name: str) -> list[str]:
    return [word for line in re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE) for word in line.split()]


def does(end: str) -> str:
    """What systemd does by the unit's settings, as systemd.service(5) says."""
    assert setting("Restart") == ["on-failure"]
    if end in ("0", *setting("SuccessExitStatus")):
        return "inactive"
    return "failed" if end in setting("RestartPreventExitStatus") else "started again"


def table() -> dict[str, str]:
    rows = re.findall(
        r"^\| `?([0-9]+|SIG[A-Z]+|watchdog)`? \|.*\| (inactive|failed|started again)\b", DOCS, re.MULTILINE
    )
    return dict(rows)


def test_the_table_has_every_end_and_says_what_the_unit_does() -> None:
    rows = table()
    codes = {str(int(code)) for code in ExitCode if code not in OF_CTL_ALONE}
    assert set(rows) == codes | {"SIGKILL", "watchdog"}
    assert rows == {end: does(end) for end in rows}


def test_a_job_that_kills_its_daemon_is_dead_before_systemd_gives_up() -> None:
    # The start after its last loss makes it a dead letter.
    assert int(setting("StartLimitBurst")[0]) > MOST_LOST_HOSTS + 1


def test_the_unit_waits_for_the_broker() -> None:
    assert "UPNEXTD_BOOT_TIMEOUT=0" in setting("Environment")
    lines = UNIT.splitlines()
    # What the administrator's file sets wins over it.
    assert lines.index("EnvironmentFile=/etc/upnext/%i.env") > lines.index("Environment=UPNEXTD_BOOT_TIMEOUT=0")
