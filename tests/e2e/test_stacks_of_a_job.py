"""`upnext job ID --stack`: where one running job stands, also one that blocks its worker's loop."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.waiting import given, wait_until

SERVICE = """
import asyncio
import time
import upnext

worker = upnext.Worker("w", concurrency=4)

async def inner(seconds):
    await asyncio.sleep(seconds)  # it waits here

@worker.task
async def waits(seconds: float) -> None:
    await inner(seconds)

@worker.task
async def blocks(seconds: float) -> None:
    time.sleep(seconds)  # it blocks here
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=1) as running:
        yield running


def upnext(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **daemon.environment,
        "UPNEXT_REDIS_URL": daemon.broker_url,
        "UPNEXTD_SOCKET": str(daemon.socket_path),
    }
    return subprocess.run(
        [str(BIN / "upnext"), *args], env=environment, capture_output=True, text=True, timeout=given(60), check=False
    )


def line_of(comment: str) -> str:
    return f"line {next(at for at, line in enumerate(SERVICE.splitlines(), 1) if comment in line)}"


def submit(daemon: Daemon, task: str) -> str:
    job_id = upnext(daemon, "call", task, "--kwargs", json.dumps({"seconds": 60})).stdout.strip()

    def running() -> bool:
        done = upnext(daemon, "job", job_id, "--json")
        return done.returncode == 0 and json.loads(done.stdout)["status"] == "running"

    wait_until(running, 20, f"{job_id} to run")
    return job_id


def test_a_job_that_waits_and_its_neighbour(daemon: Daemon) -> None:
    first, other = submit(daemon, "waits"), submit(daemon, "waits")
    done = upnext(daemon, "job", first, "--stack")
    assert done.returncode == 0, done.stderr
    assert f"job {first} (" in done.stdout
    assert line_of("# it waits here") in done.stdout
    assert f"job {other} (" not in done.stdout
    answer = json.loads(upnext(daemon, "job", first, "--stack", "--json").stdout)
    assert (answer["job_id"], answer["slot"]) == (first, "worker-1")


def test_a_job_that_blocks_the_loop(daemon: Daemon) -> None:
    job_id = submit(daemon, "blocks")
    done = upnext(daemon, "job", job_id, "--stack")
    assert done.returncode == 0, done.stderr
    assert f"{line_of('# it blocks here')} in blocks" in done.stdout


def test_a_job_that_no_process_has(daemon: Daemon) -> None:
    job_id = upnext(daemon, "call", "waits", "--kwargs", '{"seconds": 0}').stdout.strip()
    wait_until(lambda: json.loads(upnext(daemon, "job", job_id, "--json").stdout)["status"] == "done", 20, "its end")
    done = upnext(daemon, "job", job_id, "--stack")
    assert done.returncode == 1
    assert "is done: no process has it now" in done.stderr
