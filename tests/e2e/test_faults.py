"""The system runs short of something, clocks jump, processes are stopped: the supervisor backs off, recovers, and blames nobody."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cgroups import GroupedDaemon, group
from tests.support.clocks import SteppedClock
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until
from upnext.core.outcome import JobStatus
from upnext.engine.views import tasks

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVICE = """
    import asyncio, os, subprocess, sys, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    async def hello(name: str) -> str:
        return f"hello {name}"

    @worker.task
    async def wall() -> float:
        return time.time()

    @worker.cron("* * * * * *")
    async def every_second() -> None: ...

    @worker.task
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    @worker.task(max_crashes=1)
    async def leave() -> None:
        os._exit(3)

    @worker.task
    def chatter(megabytes: int) -> None:
        for _ in range(megabytes * 16):
            print("z" * 65535)
            time.sleep(0.05)

    @worker.task
    async def orphans(count: int) -> None:
        # Each child of this shell forks a grandchild that outlives it.
        code = (
            "import os, time\\n"
            f"for _ in range({count}):\\n"
            "    if os.fork() == 0:\\n"
            "        os.setsid()\\n"
            "        if os.fork() == 0: time.sleep(0.3); os._exit(0)\\n"
            "        os._exit(0)\\n"
            f"for _ in range({count}): os.wait()\\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
"""


def serves(queue: Queue, timeout_s: float = 20.0) -> bool:
    return queue.ended(queue.submit("hello", name="x"), timeout_s).status is JobStatus.DONE


def incarnations(daemon: Daemon) -> dict[str, int]:
    return {c["slot"]: c["incarnation"] for c in daemon.status()["children"] if c["role"] in ("worker", "scheduler")}


def all_ready(daemon: Daemon, workers: int = 2) -> bool:
    return len(daemon.worker_pids()) == workers


@contextmanager
def fd_limit(pid: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_out_of_descriptors() -> None:
    with Daemon(SERVICE, workers=2) as daemon, Queue(daemon) as queue:
        pid = daemon.worker_pids()["worker-1"]
        with fd_limit(daemon.pid, 8):
            # Fewer than it has: what is open stays open, nothing more can be opened.
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "Too many open files" in daemon.log(), 10)
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 2.0, 5)
            assert daemon.exit_code is None
            assert daemon.log().count("Too many open files") < 20, "it backs off"
        wait_until(lambda: all_ready(daemon), 40, "the worker to be back")
        assert serves(queue)
        assert daemon.child("worker-2")["restarts"] == 0


def test_out_of_descriptors_for_a_new_child_only() -> None:
    with Daemon(SERVICE, workers=1) as daemon, Queue(daemon) as queue:
        daemon.status()
        highest = max(int(fd) for fd in os.listdir(f"/proc/{daemon.pid}/fd"))
        with fd_limit(daemon.pid, highest + 3):
            daemon.rpc("scale", workers=3)
            wait_until(lambda: "can't make a child: Too many open files" in daemon.log(), 10)
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 2.0, 5)
            assert daemon.log().count("can't make a child") < 20, "it backs off"
            assert serves(queue), "those that are there work on"
        wait_until(lambda: all_ready(daemon, 3), 40, "the new workers")


def test_no_more_processes() -> None:
    with group("pids", 1000) as path:
        daemon = GroupedDaemon(SERVICE, workers=2)
        daemon.group = path
        with daemon, Queue(daemon) as queue:
            limit = path / "pids.max"
            pid = daemon.worker_pids()["worker-1"]
            limit.write_text("1")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "worker-1: can't fork: [Errno 11]" in daemon.log(), 10)
            wait_until(lambda: daemon.child("worker-1")["state"] == "BACKOFF", 10)
            assert daemon.exit_code is None
            limit.write_text("1000")
            wait_until(lambda: all_ready(daemon), 40, "the worker to be back")
            assert serves(queue)


@ROOT_ONLY
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        log = disk / "upnextd.log"
        daemon = Daemon(SERVICE, workers=2, state=disk / "state", args=("--log-file", str(log)))
        with daemon, Queue(daemon) as queue:
            before = incarnations(daemon)
            pids = daemon.worker_pids()
            queue.submit("chatter", megabytes=4)
            wait_until(lambda: shutil.disk_usage(disk).free == 0, 40, "the disk to be full")
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 1.5, 5)
            assert daemon.status()["ready_workers"] == 2
            assert daemon.ctl("status").returncode in (0, 4)
            assert daemon.worker_pids() == pids
            os.truncate(log, 0)

            def reported() -> bool:
                daemon.rpc("pause")
                daemon.rpc("resume")
                return "lines were dropped: they could not be written" in log.read_text(errors="replace")

            wait_until(reported, 20, "the log to go on and to tell what was lost")
            wait_until(lambda: serves(queue), 30)
            assert incarnations(daemon) == before
            assert daemon.child("broker")["restarts"] == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_the_wall_clock_steps(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    daemon = Daemon(SERVICE, workers=2, args=("--hang-timeout", "2.5"), env=clock.environment)
    with daemon, Queue(daemon) as queue:
        before = incarnations(daemon)
        wait_until(lambda: ticks(queue) >= 1, 15, "the cron to have fired")
        for step_s in (3600, -3600):
            clock.step(step_s)
            seen_s = float(queue.ended(queue.submit("wall")).value or b"0")
            assert abs(seen_s - time.time() - step_s) < 60, "its processes see the step"
            begun = time.monotonic()
            # Longer than every limit on a heartbeat.
            wait_until(lambda begun=begun: time.monotonic() - begun > 4.0, 5)
            assert serves(queue)
            assert queue.ended(queue.submit("nap", seconds=0.2)).status is JobStatus.DONE
        assert incarnations(daemon) == before, "nobody was killed for it"
        assert ticks(queue) < 60, "an hour ahead and back is no hour of missed runs"


def ticks(queue: Queue) -> int:
    """How often the cron has run."""
    found = {task.name: task for task in tasks.tasks(queue.broker, queue.broker.keys, time.time_ns() // 1_000_000)}
    return found["every_second"].done if "every_second" in found else 0


def test_the_broker_away_restarts_nobody() -> None:
    away_s = float(os.environ.get("UPNEXT_TEST_AWAY_S", "6"))
    with Daemon(SERVICE, workers=2, args=("--hang-timeout", "3")) as daemon, Queue(daemon) as queue:
        before = incarnations(daemon)
        running = queue.submit("nap", seconds=4.0)
        wait_until(lambda: any(c["in_flight"] for c in daemon.status()["children"]), 10)
        broker = daemon.child("broker")["pid"]
        os.kill(broker, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            wait_until(lambda: daemon.ctl("status").returncode == 4, 10, "the status to say that the broker is away")
            wait_until(lambda: time.monotonic() - begun > away_s, away_s + 5)
            assert daemon.status()["ready_workers"] == 2
            assert daemon.ctl("status").returncode == 4
        finally:
            os.kill(broker, signal.SIGCONT)
        wait_until(lambda: daemon.ctl("status").returncode == 0, 10, "the status to say that it is back")
        assert queue.ended(running).status is JobStatus.DONE
        assert serves(queue)
        assert incarnations(daemon) == before


@pytest.mark.parametrize("who", ["supervisor", "scheduler"])
def test_who_was_stopped_blames_nobody(who: str) -> None:
    with Daemon(SERVICE, workers=2, args=("--hang-timeout", "2.5")) as daemon, Queue(daemon) as queue:
        before = incarnations(daemon)
        pids = daemon.worker_pids()
        stopped_s = 5.0 if who == "supervisor" else 2.0
        pid = daemon.pid if who == "supervisor" else daemon.child("scheduler")["pid"]
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > stopped_s, 10)
        os.kill(pid, signal.SIGCONT)
        assert serves(queue)
        if who == "supervisor":
            wait_until(lambda: "held up for" in daemon.log(), 10)
            assert "hangs" not in daemon.log()
            assert incarnations(daemon) == before
        assert daemon.worker_pids() == pids


@ROOT_ONLY
class Narrow(Daemon):
    """May have 60 descriptors open, or more if it asks for them."""

    limits = "ulimit -n 60"

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", f'{self.limits}; exec "$@"', "sh", *super().command]


class Soft(Narrow):
    limits = "ulimit -Sn 60"


def test_a_low_limit_of_descriptors() -> None:
    with Narrow(SERVICE, workers=1) as daemon:
        assert daemon.stop() == 0


def test_more_children_than_the_soft_limit_of_descriptors_has_room_for() -> None:
    def of_workers(daemon: Daemon) -> set[int]:
        return {resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in daemon.worker_pids().values()}

    with Soft(SERVICE, workers=15) as daemon:
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) > 60
        assert of_workers(daemon) == {60}, "the service has what it was given"
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "in place" in daemon.log().rpartition("asked to upgrade")[2], 30, "the upgrade")
        assert daemon.ctl("restart", "worker-1", "--wait").returncode == 0
        assert of_workers(daemon) == {60}
        assert daemon.ctl("reload", "--wait", timeout_s=90).returncode == 0
        assert of_workers(daemon) == {60}


class Disturbed(Daemon):
    """Started by a parent that ignores and blocks signals; both are inherited."""

    @property
    def command(self) -> list[str]:
        disturb = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""
        return [sys.executable, "-c", disturb, *super().command]


def test_what_the_parent_did_to_signals_is_undone() -> None:
    with Disturbed(SERVICE, workers=1) as daemon:
        before = daemon.worker_pids()
        os.kill(before["worker-1"], signal.SIGKILL)
        wait_until(lambda: daemon.worker_pids().get("worker-1", before["worker-1"]) != before["worker-1"], 20)
        assert daemon.stop() == 0


def test_as_pid_1_it_reaps_orphans() -> None:
    class Contained(Daemon):
        @property
        def command(self) -> list[str]:
            return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *super().command]

    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no pid namespaces here")
    daemon = Contained(SERVICE, workers=1)
    with daemon, Queue(daemon) as queue:
        assert daemon.status()["pid"] == 1
        queue.ended(queue.submit("orphans", count=100))
        supervisor = int(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0])
        begun = time.monotonic()
        # 100 grandchildren are ours now; they sleep 0.3 s and end.
        wait_until(lambda: not zombies(supervisor) and len(children(supervisor)) <= 5, 10)
        took_s = time.monotonic() - begun
        print(f"100 orphans reaped within {took_s:.2f} s, of which they lived up to 0.3 s")
        assert took_s < 0.3 + 1.0 * PATIENCE
        assert all_ready(daemon, 1)
        assert daemon.ctl("status").returncode == 0, "the health check of a container"
        os.kill(supervisor, signal.SIGTERM)
        assert daemon.wait() == 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(pid: int) -> list[int]:
    found: list[int] = []
    for child in children(pid):
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(child)
        except OSError:
            continue
    return found
