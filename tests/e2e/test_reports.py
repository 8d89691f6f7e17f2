"""What daemons report of their slots, as `upnext hosts` shows it to those who know the broker and no daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.waiting import given, wait_until

SERVICE = """
import asyncio
import upnext

worker = upnext.Worker("shop", concurrency=4)

@worker.task
async def hold(seconds: float) -> None:
    await asyncio.sleep(seconds)
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=2) as running:
        yield running


def upnext(daemon: Daemon, *args: str) -> Any:
    """What `upnext ARGS --json` prints, on a machine that knows the broker and no daemon."""
    environment = {name: value for name, value in daemon.environment.items() if not name.startswith("UPNEXT")}
    done = subprocess.run(
        [str(BIN / "upnext"), *args, "--json", "--redis-url", daemon.broker_url],
        env={**environment, "XDG_RUNTIME_DIR": "/nowhere", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=given(30),
        check=True,
    )
    return json.loads(done.stdout)


def slots(daemon: Daemon) -> dict[str, dict[str, Any]]:
    [host] = upnext(daemon, "hosts")
    return {slot["slot"]: slot for slot in host["slots"]}


def test_hosts_shows_what_the_daemon_says(daemon: Daemon) -> None:
    wait_until(lambda: upnext(daemon, "hosts")[0]["state"] == "running", 20, "the daemon's own report")
    [host] = upnext(daemon, "hosts")
    status = daemon.status()
    assert host.keys() == {"host", "daemon", "name", "version", "state", "seen_at", "slots"}
    assert (host["host"], host["name"], host["state"]) == (os.uname().nodename, status["name"], "running")
    assert host["version"] == status["version"]
    found = {slot["slot"]: (slot["role"], slot["pid"], slot["state"]) for slot in host["slots"]}
    assert found == {child["slot"]: (child["role"], child["pid"], child["state"]) for child in status["children"]}
    assert host["slots"][0].keys() == status["children"][0].keys()
    assert all(slot["rss_bytes"] > 1 << 20 for slot in host["slots"] if slot["pid"])


def test_a_killed_worker_is_reported_with_its_cause(daemon: Daemon) -> None:
    job_id = upnext(daemon, "call", "hold", "--kwargs", '{"seconds": 600}')["job_id"]

    def place() -> dict[str, Any] | None:
        return upnext(daemon, "job", job_id)["place"]

    first = wait_until(place, 20, "it to run")
    assert first
    assert first.keys() == {"host", "daemon", "slot", "pid", "generation"}
    assert first["pid"] == daemon.worker_pids()[first["slot"]]

    def named() -> list[str]:
        return [job["job_id"] for job in slots(daemon)[first["slot"]]["in_flight"]]

    wait_until(lambda: named() == [job_id], 20, "the job in its slot")
    assert [job["job_id"] for job in upnext(daemon, "jobs", "--worker", "shop")] == [job_id]
    os.kill(first["pid"], signal.SIGKILL)

    def replaced() -> dict[str, Any] | None:
        slot = slots(daemon)[first["slot"]]
        return slot if slot["pid"] not in (None, first["pid"]) and slot["last_exit"] else None

    slot = wait_until(replaced, 20, "the next worker")
    assert slot
    assert (slot["last_exit"]["cause"], slot["last_exit"]["signal"], slot["restarts"]) == ("signal", "SIGKILL", 1)
    upnext(daemon, "cancel", job_id)


def test_a_daemon_that_pauses_or_stops_is_not_shown_as_running(daemon: Daemon) -> None:
    daemon.ctl("pause")
    wait_until(lambda: upnext(daemon, "hosts")[0]["state"] == "paused", 20, "it to be paused")
    daemon.ctl("resume")
    wait_until(lambda: upnext(daemon, "hosts")[0]["state"] == "running", 20, "it to run")
