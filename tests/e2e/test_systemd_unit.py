"""The unit file: accepted by systemd, closed tightly, and run by a real systemd."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.systemd import UNIT, Box, why_not
from tests.support.waiting import wait_until

HIGHEST_EXPOSURE = 20  # systemd's scale 0 to 10, in tenths

SERVICE = """
import asyncio
import os
import upnext

worker = upnext.Worker("demo", concurrency=2)

@worker.task
async def double(n: int) -> int:
    return 2 * n

@worker.task
async def slow() -> str:
    # Runs until the test lets it end.
    while not os.path.exists("/srv/go"):
        await asyncio.sleep(0.1)
    return "done"

@worker.task(max_crashes=1)
async def hog() -> None:
    held = []
    while len(held) < 100:
        held.append(bytearray(8 << 20))
        await asyncio.sleep(0)

@worker.task
async def environment() -> dict[str, str]:
    return dict(os.environ)
"""
UPNEXT = "/opt/upnext/bin/upnext"
PASSWORD = "hunter2"

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
        box.shell("mkdir -p /srv")
        service(box, "demo")
        yield box


def service(box: Box, name: str, *settings: str, source: str = SERVICE) -> None:
    """A service and its settings: two workers by default, and a reload that needs to be stable for a moment only."""
    box.write(f"/srv/{name}.py", source)
    lines = (f"SERVICE=/srv/{name}.py", "UPNEXTD_WORKERS=2", "UPNEXTD_CANARY_S=0.5", *settings)
    box.write(f"/etc/upnext/{name}.env", "\n".join(lines) + "\n", 0o600)


def start(box: Box, name: str) -> None:
    done = box.run("systemctl", "start", f"upnextd@{name}")
    assert done.returncode == 0, done.stderr + box.journal(f"upnextd@{name}")


def stop(box: Box, name: str) -> None:
    box.run("systemctl", "stop", f"upnextd@{name}")
    box.run("systemctl", "reset-failed", f"upnextd@{name}")


@pytest.fixture
def running(box: Box) -> Iterator[Box]:
    """The unit, started: `systemctl start` returns when it is ready."""
    box.shell("rm -f /srv/go")
    start(box, "demo")
    yield box
    box.shell("touch /srv/go")
    stop(box, "demo")


def status(box: Box, name: str = "demo") -> dict[str, Any]:
    """Asked for by root, who finds the unit's socket by its name."""
    return json.loads(box.shell(f"{UPNEXT} ctl --name {name} status --json"))


def in_flight(box: Box) -> list[str]:
    return [job["job_id"] for child in status(box)["children"] for job in child["in_flight"]]


def queue(box: Box, command: str, name: str = "demo") -> str:
    """`upnext COMMAND` on the embedded broker of the unit."""
    # Root finds it by the daemon's name.
    return box.shell(f"{UPNEXT} --name {name} {command}").strip()


def call(box: Box, task: str, *flags: str, name: str = "demo", **kwargs: Any) -> str:
    return queue(box, f"call {task} --kwargs '{json.dumps(kwargs)}' {' '.join(flags)}", name)


def job_of(box: Box, job_id: str, name: str = "demo") -> dict[str, Any]:
    return json.loads(queue(box, f"job '{job_id}' --json", name))


def drop_in(box: Box, name: str, *lines: str) -> None:
    folder = f"/etc/systemd/system/upnextd@{name}.service.d"
    box.shell(f"mkdir -p {folder}")
    box.write(f"{folder}/test.conf", "\n".join(("[Service]", *lines, "")))
    box.shell("systemctl daemon-reload")


def active_anew(box: Box, name: str, before: str) -> bool:
    shown = box.show(f"upnextd@{name}", "MainPID", "ActiveState")
    return shown["ActiveState"] == "active" and shown["MainPID"] not in ("0", before)


def main_pid(box: Box, name: str = "demo") -> str:
    return box.show(f"upnextd@{name}", "MainPID")["MainPID"]


@pytest.mark.timeout(900)
def test_the_installation_can_be_repeated(box: Box) -> None:
    output = dict(line.split(maxsplit=1) for line in box.installed.splitlines())
    assert output["venv"].startswith("/opt/upnext: made with Python 3.")
    assert output["unit"] == "/etc/systemd/system/upnextd@.service: written"
    assert output["systemd"] == "has read its units again"
    box.install("other", "/srv/demo.py")
    before = box.shell("find /etc/upnext /etc/systemd/system /opt/upnext/.upnext -type f -exec stat -c '%n %Y %i' {} +")
    again = dict(line.split(maxsplit=1) for line in box.install("other", "/srv/demo.py").splitlines())
    assert {step for step, what in again.items() if "kept" in what} == {
        "venv",
        "packages",
        "unit",
        "example",
        "settings",
    }
    assert again["next"] == "systemctl enable --now upnextd@other"
    after = box.shell("find /etc/upnext /etc/systemd/system /opt/upnext/.upnext -type f -exec stat -c '%n %Y %i' {} +")
    assert sorted(after.splitlines()) == sorted(before.splitlines())
    assert box.shell("stat -c %a /etc/upnext/other.env; grep ^SERVICE= /etc/upnext/other.env").split() == [
        "600",
        "SERVICE=/srv/demo.py",
    ]


@pytest.mark.timeout(900)
def test_the_path_of_a_service_reaches_the_daemon_as_it_is(box: Box) -> None:
    path = '/srv/a&b|"c" $HOME `d` \\1 é.py'
    box.shell(f"cp /srv/demo.py {shlex.quote(path)}")
    box.install("odd", path)
    start(box, "odd")
    assert status(box, "odd")["service"] == path
    stop(box, "odd")


@pytest.mark.timeout(900)
def test_start_returns_when_every_child_is_ready(running: Box) -> None:
    output = status(running)
    assert (output["ready_workers"], output["desired_workers"]) == (2, 2)
    roles = {child["role"]: child["state"] for child in output["children"]}
    assert roles == {"worker": "READY", "scheduler": "READY", "template": "READY", "broker": "READY"}
    shown = running.show(
        "upnextd@demo", "ActiveState", "StatusText", "WatchdogUSec", "OOMPolicy", "DropInPaths", "PrivateUsers"
    )
    assert shown["ActiveState"] == "active"
    assert (shown["DropInPaths"], shown["PrivateUsers"]) == ("", "yes"), "the unit as it is shipped"
    assert (shown["WatchdogUSec"], shown["OOMPolicy"]) == ("15s", "continue")
    assert shown["StatusText"], "the daemon says in STATUS= what it does"
    assert call(running, "double", "--wait", n=21) == "42"


@pytest.mark.timeout(900)
def test_another_user_is_told_that_the_unit_is_not_readable(running: Box) -> None:
    as_nobody = (
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "env",
        "HOME=/nonexistent",
        UPNEXT,
    )
    done = running.run(*as_nobody, "--name", "demo", "tasks")
    assert (done.returncode, done.stdout) == (69, "")
    assert "not readable as this user are the units demo (use sudo)" in done.stderr
    done = running.run(*as_nobody, "ctl", "--name", "demo", "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not readable as this user: sudo upnext ctl --name demo" in done.stderr
    done = running.run(*as_nobody, "ctl", "status")
    assert (done.returncode, done.stdout) == (3, "")
    assert "not readable are the units demo (use sudo)" in done.stderr


@pytest.mark.timeout(900)
def test_reload_takes_new_code_and_refuses_broken_code(running: Box) -> None:
    before = main_pid(running)
    running.write("/srv/demo.py", SERVICE.replace("return 2 * n", "return 3 * n"))
    done = running.run("systemctl", "reload", "upnextd@demo")
    assert done.returncode == 0, done.stderr + running.journal("upnextd@demo")
    assert call(running, "double", "--wait", n=2) == "6"

    running.write("/srv/demo.py", "raise RuntimeError('half a deploy')")
    done = running.run("systemctl", "reload", "upnextd@demo")
    assert done.returncode != 0
    assert "half a deploy" in running.journal("upnextd@demo")
    assert call(running, "double", "--wait", n=2) == "6", "the code before goes on"
    shown = running.show("upnextd@demo", "MainPID", "ActiveState", "SubState", "NRestarts")
    assert shown == {"MainPID": before, "ActiveState": "active", "SubState": "running", "NRestarts": "0"}
    assert status(running)["ready_workers"] == 2
    running.write("/srv/demo.py", SERVICE)


@pytest.mark.timeout(900)
def test_after_kill_9_of_the_main_process_systemd_starts_it_again(running: Box) -> None:
    job_id = call(running, "slow")
    wait_until(lambda: job_id in in_flight(running), 10, "the job to run")
    before = main_pid(running)
    running.shell(f"kill -9 {before}")
    wait_until(lambda: active_anew(running, "demo", before), 30, "the unit to be active again")
    running.shell("touch /srv/go")
    ended = wait_until(lambda: (job := job_of(running, job_id))["result"] and job, 30)
    assert (ended["status"], ended["result"]) == ("done", "done")


@pytest.mark.timeout(900)
def test_stop_waits_for_running_jobs(running: Box) -> None:
    job_id = call(running, "slow")
    wait_until(lambda: job_id in in_flight(running), 10, "the job to run")
    running.shell("systemctl stop --no-block upnextd@demo")
    wait_until(
        lambda: '"mode":"stopping"' in running.run(UPNEXT, "ctl", "--name", "demo", "status", "--json").stdout, 10
    )
    running.shell("touch /srv/go")
    wait_until(
        lambda: running.show("upnextd@demo", "ActiveState") == {"ActiveState": "inactive"}, 30, "the unit to stop"
    )
    shown = running.show("upnextd@demo", "Result", "ExecMainStatus")
    assert shown == {"Result": "success", "ExecMainStatus": "0"}, running.journal("upnextd@demo")
    running.shell("systemctl start upnextd@demo")
    job = job_of(running, job_id)
    assert (job["status"], job["attempt"], job["crashes"]) == ("done", 1, 0)


@pytest.mark.timeout(900)
def test_a_supervisor_that_stands_still_is_killed_by_the_watchdog(box: Box) -> None:
    service(box, "frozen")
    drop_in(box, "frozen", "WatchdogSec=10", "RestartSec=8")
    start(box, "frozen")
    before = main_pid(box, "frozen")
    box.shell(f"kill -STOP {before}")
    wait_until(lambda: box.show("upnextd@frozen", "Result") == {"Result": "watchdog"}, 30, "the watchdog to bark")
    wait_until(lambda: active_anew(box, "frozen", before), 30, "systemd to put another in its place")
    assert box.show("upnextd@frozen", "NRestarts") == {"NRestarts": "1"}
    assert status(box, "frozen")["ready_workers"] == 2
    stop(box, "frozen")


@pytest.mark.timeout(900)
def test_a_worker_killed_for_memory_does_not_end_the_unit(box: Box) -> None:
    service(box, "hungry")
    drop_in(box, "hungry", "MemoryMax=256M", "MemorySwapMax=0")
    start(box, "hungry")
    limits = box.shell(
        "find /sys/fs/cgroup -path '*upnextd@hungry.service/memory.*' | grep -E '/memory.(max|limit_in_bytes)$' | xargs -r cat"
    )
    if str(256 << 20) not in limits:
        stop(box, "hungry")
        pytest.skip("systemd has no memory controller in the box")
    before = main_pid(box, "hungry")
    job_id = call(box, "hog", name="hungry")
    job = wait_until(lambda: (job := job_of(box, job_id, "hungry"))["cause"] and job, 60, "the job to be buried")
    assert (job["status"], job["cause"]) == ("dead", "oom"), box.journal("upnextd@hungry")
    wait_until(lambda: status(box, "hungry")["ready_workers"] == 2, 20, "the worker to be replaced")
    shown = box.show("upnextd@hungry", "MainPID", "ActiveState", "NRestarts")
    assert shown == {"MainPID": before, "ActiveState": "active", "NRestarts": "0"}
    stop(box, "hungry")


@pytest.mark.timeout(900)
def test_the_redis_url_comes_from_a_credential_that_others_do_not_see(box: Box) -> None:
    server = box.shell(
        "/opt/upnext/bin/python -c 'from upnextd.broker.embedded import find_server; print(find_server())'"
    ).strip()
    box.write("/srv/redis.conf", f"port 6399\nrequirepass {PASSWORD}\nsave ''\ndaemonize yes\npidfile /tmp/redis.pid\n")
    box.shell(f"{server} /srv/redis.conf >/dev/null")
    service(box, "kept")
    box.write("/etc/upnext/kept.redis-url", f"redis://:{PASSWORD}@127.0.0.1:6399/0\n", 0o600)
    start(box, "kept")
    assert status(box, "kept")["broker"] == {
        "url": "redis://:***@127.0.0.1:6399/0",
        "embedded": False,
        "connected": True,
    }
    done = box.run(
        "env", f"UPNEXT_REDIS_URL=redis://:{PASSWORD}@127.0.0.1:6399/0", UPNEXT, "call", "environment", "--wait"
    )
    seen = json.loads(done.stdout)
    assert seen["CREDENTIALS_DIRECTORY"] == "/run/credentials/upnextd@kept.service"
    everywhere = box.shell("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    assert PASSWORD not in json.dumps(seen) + everywhere + box.journal("upnextd@kept")
    allowed = box.shell("stat -c '%a %U' /run/credentials/upnextd@kept.service/redis-url").split()
    assert allowed == ["400", "upnext-kept"]
    stop(box, "kept")
    box.shell("kill $(cat /tmp/redis.pid)")


@pytest.mark.timeout(900)
def test_a_redis_that_is_away_at_boot_is_waited_for(box: Box) -> None:
    server = box.shell(
        "/opt/upnext/bin/python -c 'from upnextd.broker.embedded import find_server; print(find_server())'"
    ).strip()
    service(box, "early", "UPNEXTD_REDIS_URL=redis://127.0.0.1:6398/0")
    # The manager gives up a start after this, unless it is asked for more time.
    drop_in(box, "early", "TimeoutStartSec=15")
    box.shell("systemctl start --no-block upnextd@early")
    wait_until(
        lambda: "waiting for the broker" in box.show("upnextd@early", "StatusText")["StatusText"], 30, "the status"
    )
    before = main_pid(box, "early")
    box.shell(f"{server} --port 6398 --save '' --daemonize yes --pidfile /tmp/early.pid >/dev/null")
    wait_until(
        lambda: box.show("upnextd@early", "ActiveState") == {"ActiveState": "active"}, 90, "the unit to be ready"
    )
    assert (main_pid(box, "early"), box.show("upnextd@early", "NRestarts")) == (before, {"NRestarts": "0"})
    stop(box, "early")
    box.shell("kill $(cat /tmp/early.pid)")


@pytest.mark.timeout(900)
def test_a_stop_that_kills_jobs_is_no_failure_and_stays_a_stop(box: Box) -> None:
    box.shell("rm -f /srv/go")
    service(box, "cut", "UPNEXTD_STOP_TIMEOUT=0.5")
    for command in ("systemctl stop upnextd@cut", f"{UPNEXT} ctl --name cut stop"):
        start(box, "cut")
        job_id = call(box, "slow", name="cut")
        wait_until(lambda: job_of(box, job_id, "cut")["status"] == "running", 10, "the job to run")  # noqa: B023
        box.run("sh", "-c", command)
        wait_until(lambda: box.show("upnextd@cut", "ActiveState") == {"ActiveState": "inactive"}, 30, "the stop")
        # One that waits to be started again is "activating".
        assert box.show("upnextd@cut", "Result") == {"Result": "success"}, command
        [*_, cut] = [line for line in box.journal("upnextd@cut").splitlines() if "killed at the deadline" in line]
        assert job_id in cut
    box.shell("touch /srv/go")
    stop(box, "cut")


@pytest.mark.timeout(900)
def test_a_service_that_cannot_be_imported_is_not_tried_again(box: Box) -> None:
    box.write("/srv/broken.py", "import upnext\nraise RuntimeError('boom')\n")
    box.write("/etc/upnext/broken.env", "SERVICE=/srv/broken.py\n", 0o600)
    done = box.run("systemctl", "start", "upnextd@broken")
    assert done.returncode != 0
    shown = box.show("upnextd@broken", "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}, box.journal("upnextd@broken")
    assert "boom" in box.journal("upnextd@broken")
