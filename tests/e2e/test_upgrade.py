"""SIGUSR2: another upnextd in the same process; nobody below notices."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

import upnext
import upnextd
from tests.e2e.reloading import Load, all_done, ledger, let_go, make, source, start_hold
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until
from upnext.control import protocol
from upnext.control.client import ControlClient


def pids(daemon: Daemon) -> dict[str, int]:
    return {child["slot"]: child["pid"] for child in daemon.status()["children"]}


def upgrade(daemon: Daemon) -> None:
    before = upgrades(daemon)
    daemon.signal(signal.SIGUSR2)
    wait_until(lambda: upgrades(daemon) > before, 20, "the upgrade")
    daemon.wait_ready()


def upgrades(daemon: Daemon) -> int:
    return daemon.log().count("in place: ")


def open_fds(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.mark.parametrize("times", [int(os.environ.get("UPNEXT_TEST_UPGRADES", "4"))])
def test_upgrades_under_load_keep_every_pid_and_lose_nothing(times: int) -> None:
    """UPNEXT_TEST_UPGRADES=20 for the whole measure."""
    with make() as daemon:
        before, inode, fds = pids(daemon), os.stat(daemon.socket_path).st_ino, 0
        with Load(daemon, per_s=50) as load:
            for number in range(times):
                upgrade(daemon)
                if number == 0:
                    fds = open_fds(daemon)
        wait_until(lambda: all_done(daemon, load), 20)
        assert pids(daemon) == before
        assert os.stat(daemon.socket_path).st_ino == inode
        starts, ends = ledger(daemon)
        assert load.errors == []
        assert (len(starts), set(starts.values()), set(ends.values())) == (load.submitted, {1}, {1})
        assert load.least_ready >= 2
        wait_until(lambda: open_fds(daemon) <= fds, 5, f"{fds} descriptors, as after the first upgrade")
        print(f"{times} upgrades, {load.submitted} jobs, {fds} fds")


def test_after_an_upgrade_everything_still_works() -> None:
    with make() as daemon:
        daemon.rewrite(source(2))
        assert daemon.ctl("reload", "--wait").returncode == 0
        job_id = start_hold(daemon)
        upgrade(daemon)
        status = daemon.status()
        assert (status["generation"], status["pid"]) == (2, daemon.pid)
        assert status["scheduler"]["leader"]
        assert [job["job_id"] for child in status["children"] for job in child["in_flight"]] == [job_id]
        second = Daemon(daemon.service, state=daemon.state)
        second.launch()
        try:
            assert second.wait(20) == 73, "the lock is still held"
        finally:
            second.close()
        slot = next(
            child["slot"]
            for child in daemon.status()["children"]
            if not child["in_flight"] and child["role"] == "worker"
        )
        pid = pids(daemon)[slot]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: daemon.worker_pids().get(slot) not in (None, pid), 10)
        broker = pids(daemon)["broker"]
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: pids(daemon)["broker"] not in (None, broker), 10)
        daemon.rpc("scale", workers=3)
        wait_until(lambda: len(daemon.worker_pids()) == 3, 10)
        daemon.rpc("pause")
        wait_until(lambda: daemon.status()["mode"] == "paused", 5)
        before = upgrades(daemon)
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: upgrades(daemon) > before, 20, "the upgrade while paused")
        wait_until(lambda: daemon.status()["mode"] == "paused", 10)
        daemon.rpc("resume")
        let_go(daemon)
        wait_until(lambda: '"done"' in daemon.cli("job", job_id, "--json").stdout, 20)
        daemon.rewrite(source(3))
        assert daemon.ctl("reload", "--wait").returncode == 0
        assert daemon.status()["generation"] == 3
        assert daemon.stop() == 0


def test_connections_are_kept_over_an_upgrade() -> None:
    with make(1) as daemon, ControlClient(daemon.socket_path) as client, ControlClient(daemon.socket_path) as follower:
        follower.call("subscribe")
        with socket.socket(socket.AF_UNIX) as unfinished:
            unfinished.settimeout(20)
            unfinished.connect(str(daemon.socket_path))
            request = protocol.encode(protocol.Request(7, "hello"))
            unfinished.sendall(request[:10])
            client.call("status")
            upgrade(daemon)
            unfinished.sendall(request[10:])
            assert unfinished.recv(1 << 16).startswith(b'{"jsonrpc":"2.0","id":7,"result"')
        assert client.call("status")["pid"] == daemon.pid
        pid = daemon.worker_pids()["worker-1"]
        os.kill(pid, signal.SIGKILL)
        exited = next(event for event in follower.events() if event["kind"] == "child_exited")
        assert exited["pid"] == pid


def test_an_upgrade_without_preload_and_a_term_right_after_it() -> None:
    with make(1, args=("--no-preload",)) as daemon:
        before = pids(daemon)
        upgrade(daemon)
        assert pids(daemon) == before
        daemon.signal(signal.SIGUSR2)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(20) == 0


def test_an_upgrade_says_what_it_waits_for() -> None:
    with make() as daemon:
        wait_until(lambda: " ready: " in daemon.log(), 20, "the scheduler, too")
        before = upgrades(daemon)
        template = daemon.child("template")["pid"]
        os.kill(template, signal.SIGSTOP)
        try:
            os.kill(daemon.worker_pids()["worker-2"], signal.SIGKILL)
            wait_until(lambda: daemon.child("worker-2")["state"] == "SPAWNING", 20)
            daemon.signal(signal.SIGUSR2)
            wait_until(lambda: "the upgrade waits for worker-2, which is SPAWNING" in daemon.log(), 20)
        finally:
            os.kill(template, signal.SIGCONT)
        wait_until(lambda: upgrades(daemon) > before, 30, "the upgrade")


def test_an_upgrade_to_a_program_with_another_inner_protocol_is_refused(tmp_path: Path) -> None:
    """Two versions side by side: the old daemon goes on, with everything that it has; back in its version, it upgrades."""
    package = tmp_path / "upnextd"
    package.symlink_to(Path(upnextd.__file__).parent)
    (tmp_path / "upnext").symlink_to(Path(upnext.__file__).parent)
    service = "import upnext\nworker = upnext.Worker()\n@worker.task\ndef work(): ...\n"
    with Daemon(service, workers=1, env={"PYTHONPATH": str(tmp_path)}) as daemon:
        before = pids(daemon)
        package.unlink()
        shutil.copytree(Path(upnextd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        messages = package / "shared" / "messages.py"
        text, count = re.subn(r"^PROTOCOL = (\d+)$", r"PROTOCOL = 9\1", messages.read_text(), flags=re.MULTILINE)
        assert count == 1
        messages.write_text(text)
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: "can't take this daemon over" in daemon.log(), 30, "the refusal")
        assert "(a restart takes it in); the daemon goes on as it was" in daemon.log()
        reload = daemon.ctl("reload", "--wait", timeout_s=60)
        assert reload.returncode != 0
        assert re.search(r"is another version than this daemon \(inner protocol", reload.stderr + reload.stdout)
        assert pids(daemon) == before
        assert daemon.status()["ready_workers"] == 1
        shutil.rmtree(package)
        package.symlink_to(Path(upnextd.__file__).parent)
        upgrade(daemon)
        assert pids(daemon) == before
