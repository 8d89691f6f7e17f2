"""Children that end before they did anything: a crash loop ends the daemon when no worker works, and never a running job."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus

SERVICE = """
    import asyncio, os
    import upnext

    worker = upnext.Worker("jobs", concurrency=2)

    @worker.task
    async def hold() -> str:
        # Until the test lets it end.
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)
        return "held"
"""

HOOK = """
    forks = 0

    def hook() -> None:
        global forks
        forks += 1  # 1: in the process between template and child, 2: in the child
        if os.path.exists(f"die-{forks}"):
            os._exit(0)

    os.register_at_fork(after_in_child=hook)
"""


def looping(daemon: Daemon) -> bool:
    return "; the others go on, worker-" in daemon.log()


def kill_an_idle_worker(daemon: Daemon) -> str:
    workers = [child for child in daemon.status()["children"] if child["role"] == "worker"]
    idle = next(child for child in workers if not child["in_flight"])
    os.kill(idle["pid"], signal.SIGKILL)
    return idle["slot"]


def start_holding(daemon: Daemon, queue: Queue) -> str:
    job = queue.submit("hold")
    wait_until(lambda: any(c.get("in_flight") for c in daemon.status()["children"]), 20, "the job to run")
    return job


@pytest.mark.parametrize("change", ["broken", "with a new task"])
def test_a_changed_file_and_a_dead_worker_leave_the_others_alone(change: str) -> None:
    """Without preload: no reload was asked for, so the dead one's successors can't take the file's new state in."""
    changed = SERVICE + "\n    @worker.task\n    async def more() -> None: ...\n"
    with Daemon(SERVICE, args=("--no-preload",)) as daemon, Queue(daemon) as queue:
        job = start_holding(daemon, queue)
        daemon.rewrite("import nothing_of_this_name" if change == "broken" else changed)
        slot = kill_an_idle_worker(daemon)
        wait_until(lambda: looping(daemon), 60, "the crash loop to be reported")
        assert daemon.exit_code is None
        assert daemon.ctl("status").returncode == 4
        (daemon.directory / "go").touch()
        assert queue.ended(job).status is JobStatus.DONE
        daemon.rewrite(SERVICE)
        wait_until(lambda: slot in daemon.worker_pids(), 60, "the slot to come back")
        assert daemon.ctl("status").returncode == 0


def test_a_crash_loop_names_how_the_last_child_ended() -> None:
    crash = """
    @worker.lifespan
    async def crash():
        os.kill(os.getpid(), 11)
        yield
"""
    daemon = Daemon(SERVICE + crash)
    try:
        daemon.launch()
        assert daemon.wait(60) == 70
        assert "without having done anything (ended without a word; the last: signal:SIGSEGV)" in daemon.log()
    finally:
        daemon.close()


@pytest.mark.parametrize("at", [1, 2])
def test_children_that_die_inside_the_fork_are_a_crash_loop(at: int) -> None:
    daemon = Daemon(SERVICE + HOOK)
    try:
        (daemon.directory / f"die-{at}").touch()
        daemon.launch()
        assert daemon.wait(60) == 70
        assert "error: crash loop:" in daemon.log()
        assert ("died inside the fork" in daemon.log()) is (at == 1)
    finally:
        daemon.close()


@pytest.mark.parametrize("at", [1, 2])
def test_children_that_die_inside_the_fork_leave_the_others_alone(at: int) -> None:
    with Daemon(SERVICE + HOOK) as daemon, Queue(daemon) as queue:
        job = start_holding(daemon, queue)
        (daemon.directory / f"die-{at}").touch()
        slot = kill_an_idle_worker(daemon)
        wait_until(lambda: looping(daemon), 60, "the crash loop to be reported")
        assert daemon.exit_code is None
        (daemon.directory / f"die-{at}").unlink()
        wait_until(lambda: slot in daemon.worker_pids(), 60, "the slot to come back")
        (daemon.directory / "go").touch()
        assert queue.ended(job).status is JobStatus.DONE
