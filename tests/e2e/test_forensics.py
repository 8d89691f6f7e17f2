"""Why a child died, and which of its jobs are to blame: in the log, in `status`, in the job's own record."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.outcome import FailureReason, JobStatus

SERVICE = """
    import asyncio, ctypes, os, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=10)

    @worker.task
    async def work(number: int, guilty: int = -1) -> int:
        await asyncio.sleep(0.5)
        if number == guilty:
            ctypes.string_at(0)
        return number

    @worker.task(max_crashes=1)
    async def leave(code: int) -> None:
        await asyncio.sleep(0.1)
        os._exit(code)

    @worker.task(max_crashes=1)
    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @worker.task(max_crashes=1)
    async def spin() -> None:
        while True:
            time.time()
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(SERVICE, workers=5, args=("--hang-timeout", "3")) as one:
        yield one


@pytest.fixture(scope="module")
def queue(daemon: Daemon) -> Iterator[Queue]:
    with Queue(daemon) as one:
        yield one


def slot_of(daemon: Daemon, job_id: str) -> dict[str, object]:
    """The child in which the job runs."""

    def look() -> dict[str, object] | None:
        children = daemon.status()["children"]
        return next((c for c in children if job_id in {job["job_id"] for job in c["in_flight"]}), None)

    return wait_until(look, 10, f"{job_id} to run") or {}


def test_one_segfault_among_fifty_running_jobs(daemon: Daemon, queue: Queue) -> None:
    begun = time.monotonic()
    job_ids = queue.submit_many("work", [{"number": number, "guilty": 17} for number in range(50)])
    wait_until(lambda: None not in queue.statuses(job_ids), 30)
    guilty = queue.ended(job_ids[17])
    innocent = [queue.ended(job_id) for index, job_id in enumerate(job_ids) if index != 17]
    assert time.monotonic() - begun < 10 * PATIENCE
    assert (guilty.status, guilty.reason, guilty.cause, guilty.crashes) == (
        JobStatus.DEAD,
        FailureReason.CRASH,
        "signal:SIGSEGV",
        3,
    )
    assert guilty.error is not None
    assert "in work" in guilty.error.traceback, "the record has the stack of the crash"
    assert {(job.status, job.crashes) for job in innocent} == {(JobStatus.DONE, 0)}
    shown = daemon.cli("job", guilty.job_id).stdout
    assert "cause      signal:SIGSEGV" in shown
    assert "crashes    3" in shown
    wait_until(lambda: daemon.status()["ready_workers"] == 5, 10)


def test_an_exit_code_is_the_cause(daemon: Daemon, queue: Queue) -> None:
    job_id = queue.submit("leave", code=3)
    job = queue.ended(job_id)
    assert (job.status, job.cause) == (JobStatus.DEAD, "exit:3")
    last = [child["last_exit"] for child in daemon.status()["children"] if child["last_exit"]]
    assert ("exit", 3, None) in {(one["cause"], one["code"], one["signal"]) for one in last}


def test_a_kill_by_hand_is_no_oom(daemon: Daemon, queue: Queue) -> None:
    job_id = queue.submit("wait", seconds=60)
    child = slot_of(daemon, job_id)
    os.kill(int(str(child["pid"])), signal.SIGKILL)
    job = queue.ended(job_id)
    assert (job.status, job.cause) == (JobStatus.DEAD, "signal:SIGKILL")
    last = daemon.child(str(child["slot"]))["last_exit"]
    assert (last["cause"], last["signal"]) == ("signal", "SIGKILL")


def test_a_hang_is_the_cause_with_its_stack(daemon: Daemon, queue: Queue) -> None:
    job_id = queue.submit("spin")
    child = slot_of(daemon, job_id)
    job = queue.ended(job_id)
    assert (job.status, job.cause) == (JobStatus.DEAD, "hung")
    assert job.error is not None
    assert "in spin" in job.error.traceback
    assert daemon.child(str(child["slot"]))["last_exit"]["cause"] == "hung"
