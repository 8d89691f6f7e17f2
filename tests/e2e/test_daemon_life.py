"""A real daemon: children die and come back, jobs are not lost, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, RpcError
from tests.support.waiting import PATIENCE, wait_until

SERVICE = """
    import asyncio, os, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    async def hello(name: str) -> str:
        return f"hello {name}"

    @worker.task
    async def hold() -> None:
        # Runs until the test lets it end.
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)

    @worker.task
    def block(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not os.path.exists("go"):
            time.sleep(0.02)

    @worker.task
    async def spin(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
"""


@pytest.fixture
def daemon() -> Daemon:
    return Daemon(SERVICE, workers=2)


def submit(daemon: Daemon, task: str, **kwargs: object) -> str:
    done = daemon.cli("call", task, "--kwargs", json.dumps(kwargs))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def let_go(daemon: Daemon) -> None:
    """What holds or blocks ends."""
    (daemon.directory / "go").touch()


def running(daemon: Daemon) -> dict[str, str]:
    """job id -> slot of what runs."""
    return {job["job_id"]: child["slot"] for child in daemon.status()["children"] for job in child["in_flight"]}


def test_a_killed_worker_is_replaced_and_its_job_runs_again(daemon: Daemon) -> None:
    with daemon:
        job_id = submit(daemon, "hold")
        slot = wait_until(lambda: running(daemon).get(job_id, ""), 10)
        before = daemon.child(slot)
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.child(slot)["incarnation"] == before["incarnation"] + 1, 5)
        wait_until(lambda: daemon.child(slot)["state"] == "READY", 10)
        assert daemon.child(slot)["last_exit"]["signal"] == "SIGKILL"
        assert daemon.child(slot)["restarts"] == 1
        wait_until(lambda: job_id in running(daemon), 5, "the job to run again")
        assert f"jobs that had started: {job_id}" in daemon.log()
        let_go(daemon)
        done = wait_until(
            lambda: daemon.cli("job", job_id, "--json").stdout if "done" in daemon.cli("job", job_id).stdout else "", 15
        )
        assert '"crashes":1' in done.replace(" ", "")


def test_all_workers_killed_at_once_come_back(daemon: Daemon) -> None:
    with daemon:
        before = daemon.worker_pids()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(daemon.worker_pids().values()) - set(before.values())) == 2, 10)


def test_the_scheduler_and_the_template_are_replaced(daemon: Daemon) -> None:
    with daemon:
        scheduler = wait_until(lambda: daemon.child("scheduler")["pid"], 10, "the scheduler")
        workers = daemon.worker_pids()
        os.kill(scheduler, signal.SIGKILL)
        wait_until(lambda: daemon.child("scheduler")["pid"] not in (None, scheduler), 10)
        wait_until(lambda: daemon.status()["scheduler"]["leader"], 10)
        template = daemon.child("template")["pid"]
        os.kill(template, signal.SIGKILL)
        wait_until(
            lambda: daemon.child("template")["state"] == "READY" and daemon.child("template")["pid"] != template, 15
        )
        assert daemon.worker_pids() == workers, "workers live on without their template"
        os.kill(workers["worker-1"], signal.SIGKILL)
        wait_until(lambda: len(daemon.worker_pids()) == 2 and daemon.worker_pids() != workers, 10)


def test_a_killed_supervisor_leaves_nothing_and_is_started_again(daemon: Daemon) -> None:
    with daemon:
        job_id = submit(daemon, "spin", seconds=30.0)
        wait_until(lambda: running(daemon), 10)
        daemon.kill()
        begun = time.monotonic()
        wait_until(lambda: not daemon.left(), 5, "every process to be gone")
        assert time.monotonic() - begun < 1.0 * PATIENCE
        daemon.start()
        wait_until(lambda: job_id in running(daemon), 20, "the job, taken back from the former life, to run again")
        daemon.signal(signal.SIGQUIT)
        assert daemon.wait() == 75


def test_the_session_of_a_dead_worker_is_killed_before_its_jobs_run_again() -> None:
    service = (
        SERVICE
        + """
    @worker.task
    async def offspring() -> None:
        import subprocess
        subprocess.Popen(["sleep", "300"])
        await asyncio.sleep(300)
    """
    )
    daemon = Daemon(service, workers=1)
    with daemon:
        submit(daemon, "offspring")
        wait_until(lambda: any("sleep 300" in command for command in daemon.left().values()), 10)
        sleeper = next(pid for pid, command in daemon.left().items() if "sleep 300" in command)
        os.kill(daemon.worker_pids()["worker-1"], signal.SIGKILL)
        wait_until(lambda: sleeper not in daemon.left(), 5)
        daemon.signal(signal.SIGQUIT)
        daemon.wait()


def test_term_waits_for_running_jobs(daemon: Daemon) -> None:
    with daemon:
        submit(daemon, "hold")
        wait_until(lambda: running(daemon), 10)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: daemon.status()["mode"] == "stopping", 10)
        assert running(daemon)
        let_go(daemon)
        assert daemon.wait() == 0


def test_term_kills_at_the_deadline_and_names_the_jobs() -> None:
    daemon = Daemon(SERVICE, workers=1, args=("--stop-timeout", "1"))
    with daemon:
        job_id = submit(daemon, "block", seconds=60.0)
        wait_until(lambda: running(daemon), 10)
        begun = time.monotonic()
        assert daemon.stop() == 75
        assert time.monotonic() - begun < 4 * PATIENCE, "the default is 30 s"
        assert job_id in daemon.log().splitlines()[-1] or f"{job_id}" in daemon.log()


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    with daemon:
        second = Daemon(daemon.service, state=daemon.state)
        second.socket_path = daemon.socket_path
        second.launch()
        try:
            assert second.wait(10) == 73
            assert daemon.status()["pid"] == daemon.pid
        finally:
            second.close()


def test_pause_drain_resume(daemon: Daemon) -> None:
    with daemon:
        job_id = submit(daemon, "hold")
        wait_until(lambda: job_id in running(daemon), 10)
        daemon.rpc("drain", exit=False)
        let_go(daemon)
        wait_until(lambda: daemon.status()["mode"] == "drained", 10)
        assert not running(daemon)
        (daemon.directory / "go").unlink()
        waiting = submit(daemon, "hold")
        os.kill(next(c["pid"] for c in daemon.status()["children"] if c["slot"] == "worker-1"), signal.SIGKILL)
        wait_until(lambda: daemon.child("worker-1")["state"] == "PAUSED", 10, "the replacement to be paused too")
        assert waiting not in running(daemon)
        daemon.rpc("resume")
        wait_until(lambda: waiting in running(daemon), 10)
        daemon.rpc("pause")
        let_go(daemon)
        wait_until(lambda: daemon.status()["mode"] == "paused", 5)


def test_scale_and_restart(daemon: Daemon) -> None:
    with daemon:
        daemon.rpc("scale", workers=3)
        wait_until(lambda: len(daemon.worker_pids()) == 3, 10)
        daemon.signal(signal.SIGTTOU)
        wait_until(lambda: len(daemon.worker_pids()) == 2 and daemon.status()["desired_workers"] == 2, 10)
        before = daemon.worker_pids()
        daemon.rpc("restart", slot="worker-2")
        wait_until(lambda: daemon.worker_pids().get("worker-2") not in (None, before["worker-2"]), 10)
        assert daemon.worker_pids()["worker-1"] == before["worker-1"]
        daemon.rpc("restart", slot=None)
        wait_until(lambda: not set(daemon.worker_pids().values()) & set(before.values()), 10)
        with pytest.raises(RpcError, match="no slot"):
            daemon.rpc("restart", slot="worker-9")


def test_a_spinning_loop_is_dumped_and_replaced() -> None:
    daemon = Daemon(SERVICE, workers=1, args=("--hang-timeout", "1"))
    with daemon:
        pid = daemon.worker_pids()["worker-1"]
        submit(daemon, "spin", seconds=30.0)
        wait_until(lambda: "hangs: no heartbeat" in daemon.log() and "in spin" in daemon.log(), 15)
        wait_until(lambda: daemon.child("worker-1")["pid"] not in (None, pid), 15)
        assert daemon.child("worker-1")["last_exit"]["cause"] == "hung"
        daemon.signal(signal.SIGQUIT)
        daemon.wait()


def test_a_busy_thread_is_no_hang() -> None:
    daemon = Daemon(SERVICE, workers=1, args=("--hang-timeout", "2.5"))
    with daemon:
        pid = daemon.worker_pids()["worker-1"]
        submit(daemon, "block", seconds=5.0)
        wait_until(lambda: daemon.child("worker-1")["jobs_done"] == 1, 15)
        assert daemon.worker_pids()["worker-1"] == pid


def test_dump_shows_the_stacks(daemon: Daemon) -> None:
    with daemon:
        submit(daemon, "block", seconds=300.0)
        slot = next(iter(wait_until(lambda: running(daemon), 10).values()))
        assert "in block" in daemon.rpc("dump", slot=slot)["stacks"]
        let_go(daemon)


def test_the_broker_keeps_its_data_and_comes_back(daemon: Daemon) -> None:
    with daemon:
        daemon.rpc("pause")
        wait_until(lambda: daemon.status()["mode"] == "paused", 5)
        job_id = submit(daemon, "hello", name="x")
        assert (daemon.state.stat().st_mode & 0o777) == 0o700
        assert ((daemon.state / "broker.sock").stat().st_mode & 0o777) == 0o600
        assert daemon.stop() == 0
        assert not (daemon.state / "broker.url").exists()
        daemon.start()
        wait_until(lambda: "done" in daemon.cli("job", job_id).stdout, 15)
        broker, workers = daemon.child("broker")["pid"], daemon.worker_pids()
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: daemon.child("broker")["pid"] not in (None, broker), 10)
        assert daemon.worker_pids() == workers, "an outage of the broker restarts nobody"
        wait_until(lambda: submit_ok(daemon), 20)


def submit_ok(daemon: Daemon) -> bool:
    return daemon.cli("call", "hello", "--kwargs", '{"name": "y"}', "--wait", "--timeout", "10").returncode == 0


def test_the_supervisor_is_small_and_single_threaded(daemon: Daemon) -> None:
    with daemon:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
        assert int(status["VmRSS"].split()[0]) < 60 * 1024, "bar: 30 MiB"
        assert int(status["Threads"]) == 1


def test_systemd_is_told(daemon: Daemon) -> None:
    path = daemon.directory / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(60)
        daemon._env |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        output: list[str] = []
        with daemon:
            until(listener, output, lambda: "READY=1" in output and output.count("WATCHDOG=1") >= 3)
            until(listener, output, lambda: any(line.startswith("STATUS=service: running, 2/2") for line in output))
            for pid in daemon.worker_pids().values():
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        until(listener, output, lambda: "STOPPING=1" in output)


def until(listener: socket.socket, output: list[str], enough: Callable[[], bool]) -> None:
    while not enough():
        output.append(listener.recv(4096).decode())
