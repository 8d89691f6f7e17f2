"""The hang watchdog, and stacks on demand."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.outcome import JobStatus

HANG_S = 3.0
SERVICE = """
    import asyncio, signal, time
    from pathlib import Path
    import upnext

    GO = Path(__file__).with_name("go")

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task(max_crashes=1)
    async def spin() -> None:
        print(f"spinning at {time.time()}", flush=True)
        while True:
            pass  # here

    @worker.task(max_crashes=1)
    async def deaf() -> None:
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        time.sleep(300)

    @worker.task
    def compute(seconds: float) -> int:
        end, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            rounds += 1
        return rounds

    @worker.task
    async def outer() -> None:
        await asyncio.gather(inner(), asyncio.to_thread(wait_for_go))

    async def inner() -> None:
        while not GO.exists():
            await asyncio.sleep(0.1)  # waits here

    def wait_for_go() -> None:
        while not GO.exists():
            time.sleep(0.1)
"""
HERE = next(number for number, line in enumerate(SERVICE.splitlines(), 1) if "# here" in line)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=1, args=("--hang-timeout", str(HANG_S))) as one:
        yield one


@pytest.fixture(scope="module")
def queue(daemon: Daemon) -> Iterator[Queue]:
    with Queue(daemon) as one:
        yield one


def logged_at(daemon: Daemon, text: str) -> float:
    """When the first line with `text` was logged, Unix seconds."""
    line = next(line for line in daemon.log().splitlines() if text in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()


def test_a_spinning_loop_is_dumped_aborted_and_replaced(daemon: Daemon, queue: Queue) -> None:
    before = daemon.child("worker-1")["pid"]
    job_id = queue.submit("spin")
    wait_until(lambda: daemon.ctl("status").returncode == 4, 30, "status to show the hang")
    job = queue.ended(job_id)
    assert (job.status, job.cause) == (JobStatus.DEAD, "hung")
    assert job.error is not None
    for reported in (job.error.traceback, daemon.log()):
        assert re.search(rf'File ".*service\.py", line ({HERE - 1}|{HERE}) in spin', reported), reported
    spinning = re.search(r"spinning at ([\d.]+)", daemon.log())
    assert spinning is not None
    after_s = logged_at(daemon, "hangs: no heartbeat") - float(spinning[1])
    print(f"dumped {after_s - HANG_S:.2f} s after the timeout")
    assert after_s < HANG_S + 0.5 * PATIENCE
    assert "still hangs: aborted" in daemon.log()
    wait_until(lambda: daemon.child("worker-1")["state"] == "READY", 10)
    assert daemon.child("worker-1")["pid"] != before


def test_who_does_not_heed_abort_is_killed(daemon: Daemon, queue: Queue) -> None:
    job = queue.ended(queue.submit("deaf"))
    assert (job.status, job.cause) == (JobStatus.DEAD, "hung")
    assert daemon.child("worker-1")["last_exit"]["signal"] == "SIGKILL"


def test_a_busy_thread_is_no_hang(daemon: Daemon, queue: Queue) -> None:
    wait_until(lambda: daemon.child("worker-1")["state"] == "READY", 10)
    before = daemon.child("worker-1")["pid"]
    job = queue.ended(queue.submit("compute", seconds=2.5 * HANG_S))
    assert job.status is JobStatus.DONE
    assert daemon.child("worker-1")["pid"] == before


def test_dump_tells_what_each_task_awaits(daemon: Daemon, queue: Queue) -> None:
    job_id = queue.submit("outer")
    wait_until(lambda: any(job["job_id"] == job_id for job in daemon.child("worker-1")["in_flight"]), 10)
    done = daemon.ctl("dump", "worker-1")
    assert done.returncode == 0, done.stderr
    assert f"job {job_id}" in done.stdout
    assert "in outer" in done.stdout
    assert "# waits here" in done.stdout, "the line that a task awaits"
    assert "in wait_for_go" in done.stdout, "threads are shown too"
    assert daemon.ctl("dump", "worker-9").returncode == 64
    (daemon.directory / "go").touch()
    queue.ended(job_id)


def test_dump_answers_while_the_loop_does_not(daemon: Daemon, queue: Queue) -> None:
    job_id = queue.submit("spin")
    wait_until(lambda: any(job["job_id"] == job_id for job in daemon.child("worker-1")["in_flight"]), 10)
    begun = time.monotonic()
    stacks = daemon.rpc("dump", slot="worker-1")["stacks"]
    assert time.monotonic() - begun < HANG_S
    assert "did not answer" in stacks
    assert "in spin" in stacks
    queue.ended(job_id)


SLOW_IMPORT = """
    import os, time
    from pathlib import Path
    import upnext

    worker = upnext.Worker("jobs")

    @worker.task
    async def hello() -> None: ...

    HERE = Path(__file__).parent
    (HERE / f"imports-{os.getpid()}").touch()
    while len(list(HERE.glob("imports-*"))) > 1 and not (HERE / "go").exists():
        time.sleep(0.05)
"""


def test_stacks_of_a_child_that_imports_the_service_for_itself() -> None:
    """The question must not end it."""
    daemon = Daemon(SLOW_IMPORT, workers=1, args=("--no-preload",))
    try:
        daemon.launch()
        wait_until(lambda: len(list(daemon.directory.glob("imports-*"))) == 3, PATIENCE)
        pid = wait_until(lambda: daemon.child("worker-1")["pid"], PATIENCE)
        shown = daemon.ctl("dump", "worker-1")
        (daemon.directory / "go").touch()
        daemon.wait_ready()
        assert "service.py" in shown.stdout
        assert daemon.child("worker-1")["pid"] == pid
        assert daemon.child("worker-1")["restarts"] == 0
        assert daemon.stop() == 0
    finally:
        daemon.close()
