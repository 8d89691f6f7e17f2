"""The unit file: accepted by systemd, closed tightly, and run by a real systemd."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.systemd import UNIT, Box, why_not
from tests.support.waiting import wait_until

HIGHEST_EXPOSURE = 20  # systemd's scale 0 to 10, in tenths

SERVICE = """
import asyncio
import upnext

worker = upnext.Worker("demo", concurrency=2)

@worker.task
async def double(n: int) -> int:
    return 2 * n

@worker.task
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"
"""
CTL = "/opt/upnext/bin/upnext ctl --socket /run/upnext/demo/demo.sock"
CALL = "UPNEXT_REDIS_URL=$(cat /var/lib/upnext/demo/broker.url) /opt/upnext/bin/upnext call"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here (apt-get install systemd)"
)


@needs_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # verify looks whether the program is there: on this machine it is in the environment that runs the tests.
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/upnext/bin/", f"{Path(sys.executable).parent}/"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_analyze
def test_the_unit_is_closed_tightly() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={HIGHEST_EXPOSURE}", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    if reason := why_not():
        pytest.skip(reason)
    with Box() as box:
        box.write("/srv/demo.py", SERVICE)
        box.write("/etc/upnext/demo.env", "SERVICE=/srv/demo.py\nUPNEXTD_WORKERS=2\n", 0o600)
        yield box


@pytest.fixture
def running(box: Box) -> Iterator[Box]:
    """The unit, started: `systemctl start` returns when it is ready."""
    done = box.run("systemctl", "start", "upnextd@demo")
    assert done.returncode == 0, done.stderr + box.journal("upnextd@demo")
    yield box
    box.run("systemctl", "stop", "upnextd@demo")
    box.run("systemctl", "reset-failed", "upnextd@demo")


@pytest.mark.timeout(180)
def test_start_returns_when_every_child_is_ready(running: Box) -> None:
    shown = running.show("upnextd@demo", "ActiveState", "StatusText", "User", "WatchdogUSec")
    assert shown["ActiveState"] == "active"
    assert shown["StatusText"], "the daemon says in STATUS= what it does"
    status = running.run("bash", "-c", f"{CTL} status")
    assert status.returncode == 0, status.stdout + status.stderr
    assert "READY" in status.stdout
    assert running.shell(f"{CALL} double --kwargs '{{\"n\": 21}}' --wait").strip() == "42"


@pytest.mark.timeout(180)
def test_after_kill_9_of_the_main_process_systemd_starts_it_again(running: Box) -> None:
    before = running.show("upnextd@demo", "MainPID")["MainPID"]
    running.shell(f"kill -9 {before}")

    def back() -> bool:
        shown = running.show("upnextd@demo", "MainPID", "ActiveState")
        return shown["ActiveState"] == "active" and shown["MainPID"] not in ("0", before)

    wait_until(back, 30, "the unit to be active again")
    assert running.shell(f"{CALL} double --kwargs '{{\"n\": 4}}' --wait").strip() == "8"


@pytest.mark.timeout(180)
def test_stop_waits_for_running_jobs(running: Box) -> None:
    job_id = running.shell(f"{CALL} slow --kwargs '{{\"seconds\": 1.5}}'").strip()
    wait_until(lambda: job_id in running.shell(f"{CTL} status --json"), 10, "the job to run")
    running.shell("systemctl stop upnextd@demo")
    shown = running.show("upnextd@demo", "Result", "ExecMainStatus")
    assert shown == {"Result": "success", "ExecMainStatus": "0"}, running.journal("upnextd@demo")
    running.shell("systemctl start upnextd@demo")
    found = running.shell(
        f"UPNEXT_REDIS_URL=$(cat /var/lib/upnext/demo/broker.url) /opt/upnext/bin/upnext job '{job_id}' --json"
    )
    assert '"done"' in found


@pytest.mark.timeout(180)
def test_a_service_that_cannot_be_imported_is_not_tried_again(box: Box) -> None:
    box.write("/srv/broken.py", "import upnext\nraise RuntimeError('boom')\n")
    box.write("/etc/upnext/broken.env", "SERVICE=/srv/broken.py\n", 0o600)
    done = box.run("systemctl", "start", "upnextd@broken")
    assert done.returncode != 0
    shown = box.show("upnextd@broken", "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}, box.journal("upnextd@broken")
    assert "boom" in box.journal("upnextd@broken")
