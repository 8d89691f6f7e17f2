"""`upnextd start --dashboard`: a process of the daemon that nothing else needs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.servers import free_port
from tests.support.waiting import given, wait_until

SERVICE = """
import upnext

worker = upnext.Worker("shop")

@worker.task
async def ship() -> None: ...
"""


def get(port: int, path: str, token: str | None = None) -> tuple[int, Any]:
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=given(20)
        ) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def token(daemon: Daemon) -> str:
    return Path(daemon.state, "dashboard.token").read_text().strip()


def served(port: int) -> None:
    wait_until(lambda: get(port, "/hosts")[0] == 401, 30, "the dashboard to answer")


def environment(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(part.split("=", 1) for part in raw.split("\0") if "=" in part)


def test_it_is_a_slot_of_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(
        SERVICE,
        workers=1,
        args=("--dashboard", f"127.0.0.1:{port}"),
        env={"SECRET_OF_THE_SERVICE": "s", "UPNEXTD_DASHBOARD_HOST": "queue.example.org other.example.org"},
    ) as daemon:
        served(port)
        child = daemon.child("dashboard")
        assert (child["role"], child["state"]) == ("dashboard", "READY")
        assert not any("SECRET" in name for name in environment(child["pid"]))
        assert Path(daemon.state, "dashboard.token").stat().st_mode & 0o777 == 0o600
        status, [host] = get(port, "/hosts", token(daemon))
        assert status == 200
        assert {slot["slot"] for slot in host["slots"]} >= {"worker-1", "scheduler", "dashboard"}
        # It steers the daemon that it belongs to.
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/hosts/{host['daemon']}/pause",
            method="POST",
            data=b"",
            headers={
                "Accept": "application/json",
                "Authorization": f"Bearer {token(daemon)}",
                "Host": "other.example.org",
            },
        )
        with urllib.request.urlopen(request, timeout=given(20)) as answer:
            assert answer.status == 200
        wait_until(lambda: daemon.status()["mode"] == "paused", 20, "the pause")
        # It is started again, and what it says leads in.
        os.kill(child["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.child("dashboard")["restarts"] == 1, 20, "the restart")
        served(port)
        [line] = [line for line in daemon.log().splitlines() if "the dashboard listens on" in line][-1:]
        command = line.partition("`")[2].partition("`")[0].split()
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=given(30),
            env={**os.environ, "HOME": str(tmp_path)},
            check=True,
        )
        assert done.stdout.startswith(f"http://127.0.0.1:{port}/login?ticket=")
        pid = daemon.child("dashboard")["pid"]
        daemon.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20, "it to end with its daemon")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--dashboard", "0.0.0.0:8300"), "give --dashboard-users FILE"),
        (("--dashboard", "127.0.0.1:8300", "--dashboard-proxy-header", "X-User"), "only believed on a Unix socket"),
        (("--dashboard-host", "q.example.org"), "give --dashboard HOST:PORT, too"),
    ],
)
def test_one_that_would_be_open_is_refused(args: tuple[str, ...], line: str) -> None:
    daemon = Daemon(SERVICE, args=args)
    try:
        daemon.launch()
        assert daemon.wait() == 64
        assert line in daemon.log()
    finally:
        daemon.close()


def test_a_port_that_is_taken_later_costs_the_daemon_nothing() -> None:
    port = free_port()
    with Daemon(SERVICE, workers=1, args=("--dashboard", f"127.0.0.1:{port}")) as daemon:
        served(port)
        os.kill(daemon.child("dashboard")["pid"], signal.SIGKILL)
        taken = wait_until(lambda: _taken(port), 20, "the port to be free for us")
        assert taken is not None
        with taken:
            wait_until(lambda: "can't listen on" in daemon.log(), 30, "a try that fails")
            assert daemon.status()["mode"] == "running"
        served(port)


def _taken(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_a_port_that_is_taken_ends_the_start_at_once(tmp_path: Path) -> None:
    service = tmp_path / "service.py"
    service.write_text(SERVICE)
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        done = subprocess.run(
            [str(BIN / "upnextd"), "start", str(service), "--state-dir", str(tmp_path / "state"), "--dashboard", address],
            capture_output=True, text=True, timeout=given(60), check=False,
        )  # fmt: skip
    assert done.returncode == 69
    assert f"can't listen on {address}: Address already in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
