"""A crash with several suspects: a process of its own runs them one at a time, and everybody else goes on."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tests.e2e.reloading import ledger_path, let_go, make, source
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.outcome import JobStatus

CULPRIT = """
@worker.task
async def strike() -> None:
    import ctypes
    if os.path.exists(LEDGER + ".go"):
        ctypes.string_at(0)
    await hold.function()
"""


def quarantine(daemon: Daemon) -> list[dict[str, Any]]:
    return [child for child in daemon.status()["children"] if child["slot"] == "quarantine-1"]


def running(daemon: Daemon) -> list[str]:
    """Ids of the jobs that the quarantine children run."""
    return [job["job_id"] for child in quarantine(daemon) for job in child["in_flight"]]


def kill_with(daemon: Daemon, queue: Queue, jobs: int) -> list[str]:
    """So many jobs run in worker-1 when it is killed, and stay the same when they run again. -> their ids"""
    ids = queue.submit_many("hold", [{}] * jobs)
    wait_until(lambda: len(daemon.child("worker-1")["in_flight"]) == jobs, 10)
    os.kill(daemon.worker_pids()["worker-1"], signal.SIGKILL)
    return ids


def all_end(queue: Queue, ids: list[str]) -> None:
    for job_id in ids:
        job = queue.ended(job_id)
        assert (job.status, job.crashes) == (JobStatus.DONE, 0)


def test_one_suspect_runs_at_a_time_while_the_others_go_on() -> None:
    with make(1) as daemon, Queue(daemon) as queue:
        suspects = kill_with(daemon, queue, 3)
        died = time.monotonic()
        wait_until(lambda: running(daemon), 5, "the first suspect to run")
        assert time.monotonic() - died < 1.0 * PATIENCE
        daemon.wait_ready()
        for _ in range(20):
            job = queue.ended(queue.submit("version"), 5)
            assert job.status is JobStatus.DONE
        [first] = running(daemon)
        assert first in suspects
        status = daemon.status()
        assert (status["desired_workers"], status["ready_workers"]) == (1, 1)
        [child] = quarantine(daemon)
        assert (child["role"], child["state"]) == ("worker", "READY")
        assert daemon.ctl("status").returncode == 0
        let_go(daemon)
        all_end(queue, suspects)
        wait_until(lambda: not quarantine(daemon), 15, "the quarantine child to end, since nothing is left to do")
        assert daemon.child("worker-1")["restarts"] == 1


def test_the_culprit_is_found_and_the_others_run_beside_each_other() -> None:
    with make(1, extra=CULPRIT) as daemon, Queue(daemon) as queue:
        innocent = queue.submit_many("hold", [{}] * 3)
        culprit = queue.submit("strike")
        wait_until(lambda: len(daemon.child("worker-1")["in_flight"]) == 4, 10)
        os.kill(daemon.worker_pids()["worker-1"], signal.SIGKILL)
        wait_until(lambda: running(daemon), 10)
        let_go(daemon)
        job = queue.ended(culprit, 60)
        assert (job.status, job.crashes) == (JobStatus.DEAD, 3)
        all_end(queue, innocent)
        assert daemon.child("worker-1")["restarts"] == 1, "the culprit met no worker again"
        assert "crash loop" not in daemon.log()


def test_any_number_of_its_crashes_is_no_crash_loop() -> None:
    """They are what it is there for; more of them than workers may have."""
    with make(1) as daemon, Queue(daemon) as queue:
        kill_with(daemon, queue, 3)
        pids: set[int] = set()

        def another() -> int | None:
            [pid, *_] = [child["pid"] for child in quarantine(daemon) if child["pid"]] or [None]
            return pid if pid not in pids else None

        for _ in range(8):
            pid = wait_until(another, 20, "a quarantine child") or 0
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
        assert daemon.exit_code is None
        assert daemon.status()["ready_workers"] == 1
        let_go(daemon)


def test_a_daemon_that_was_killed_finds_them_again(redis_url: str, namespace: str) -> None:
    daemon = Daemon(source(1), redis_url=redis_url, namespace=namespace, workers=1)
    daemon._env["LEDGER"] = str(ledger_path(daemon))
    with daemon, Queue(daemon) as queue:
        suspects = kill_with(daemon, queue, 3)
        wait_until(lambda: running(daemon), 10)
        daemon.kill()
        daemon.start()
        wait_until(lambda: running(daemon), 20)
        let_go(daemon)
        for job_id in suspects:
            assert queue.ended(job_id).status is JobStatus.DONE


def test_drain_resume_and_stop_count_it_in() -> None:
    with make(1) as daemon, Queue(daemon) as queue:
        suspects = kill_with(daemon, queue, 2)
        wait_until(lambda: running(daemon), 10)
        daemon.wait_ready()
        assert daemon.ctl("drain", "--wait", "--timeout", "1").returncode == 75
        assert daemon.status()["mode"] == "draining"
        assert len(running(daemon)) == 1
        let_go(daemon)
        assert daemon.ctl("drain", "--wait", "--timeout", "30").returncode == 0
        ended = [queue.job(job_id) for job_id in suspects]
        assert sum(job is not None and job.status is JobStatus.DONE for job in ended) == 1, "no second one began"
        assert daemon.ctl("resume").returncode == 0
        all_end(queue, suspects)
        assert daemon.stop() == 0


def test_a_reload_replaces_it_and_lets_its_job_end() -> None:
    with make(1) as daemon, Queue(daemon) as queue:
        suspects = kill_with(daemon, queue, 2)
        wait_until(lambda: running(daemon), 10)
        daemon.wait_ready()
        [old] = quarantine(daemon)
        daemon.rewrite(source(2))
        daemon.ctl("reload")
        wait_until(lambda: {child["generation"] for child in quarantine(daemon)} == {1, 2}, 30)
        wait_until(lambda: len(running(daemon)) == 2, 10, "each of the two processes to run one")
        assert old["pid"] in {child["pid"] for child in quarantine(daemon)}
        let_go(daemon)
        all_end(queue, suspects)
        wait_until(lambda: daemon.status()["mode"] == "running", 20)
        assert daemon.status()["generation"] == 2


def test_an_upgrade_in_place_keeps_it() -> None:
    with make(1) as daemon, Queue(daemon) as queue:
        suspects = kill_with(daemon, queue, 2)
        wait_until(lambda: running(daemon), 10)
        daemon.wait_ready()
        [before] = quarantine(daemon)
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "in place: " in daemon.log(), 20, "the upgrade")
        daemon.wait_ready()
        [after] = quarantine(daemon)
        assert (after["pid"], len(after["in_flight"])) == (before["pid"], 1)
        let_go(daemon)
        all_end(queue, suspects)
        wait_until(lambda: not quarantine(daemon), 15)


LATE = """
    import asyncio, os, signal
    import upnext

    worker = upnext.Worker("jobs", concurrency=1)

    @worker.task
    async def strike() -> str:
        # Before the loop comes to record that it is done.
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGKILL)
        return "done"

    @worker.task
    async def innocent(n: int) -> int:
        return n
"""


def test_a_job_that_ends_its_process_right_after_its_own_end_is_buried() -> None:
    with Daemon(LATE, workers=1) as daemon, Queue(daemon) as queue:
        culprit = queue.submit("strike")
        all_end(queue, queue.submit_many("innocent", [{"n": n} for n in range(20)]))
        job = queue.ended(culprit, 60)
        assert (job.status, job.crashes) == (JobStatus.DEAD, 3)
