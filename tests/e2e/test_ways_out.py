"""Whatever never comes, from a template that is stopped for one, a stop ends, now means now, and no slot stays half a child."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until

SERVICE = """
    import os, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    def orphans(count: int) -> None:
        # Each is a grandchild whose parent is gone.
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(0.2)
                os._exit(0)
            os.waitpid(pid, 0)
"""


class Stuck:
    """A daemon whose template is stopped while it owes a child; `slot` waits for it."""

    def __init__(self, daemon: Daemon, slot: str = "worker-2") -> None:
        wait_until(lambda: " ready: " in daemon.log(), 20, "the scheduler, too")
        self.daemon = daemon
        self.slot = slot
        self.template = daemon.child("template")["pid"]
        os.kill(self.template, signal.SIGSTOP)
        os.kill(daemon.worker_pids()[slot], signal.SIGKILL)
        wait_until(lambda: self.state() == "SPAWNING", 10, "the order to be out")

    def state(self) -> str | None:
        states = {child["slot"]: child["state"] for child in self.daemon.status()["children"]}
        return states.get(self.slot)


@pytest.mark.parametrize("how", ["TERM", "QUIT", "INT INT", "stop", "stop --now"])
def test_a_stop_ends_though_a_fork_is_never_reported(how: str) -> None:
    daemon = Daemon(SERVICE)
    try:
        Stuck(daemon.start())
        begun = time.monotonic()
        if how.startswith("stop"):
            done = daemon.ctl(*how.split(), timeout_s=40)
            assert done.returncode == 0, done.stderr
        else:
            for name in how.split():
                daemon.signal(signal.Signals[f"SIG{name}"])
        assert daemon.wait(30) == 0
        took_s = time.monotonic() - begun
        print(f"{how}: {took_s:.2f} s")
        now = how in ("QUIT", "stop --now", "INT INT")
        assert took_s < (1.0 if now else 4.0) * PATIENCE
        daemon.assert_nothing_left()
    finally:
        daemon.close()


def test_a_slot_that_is_scaled_away_amid_a_fork_goes() -> None:
    with Daemon(SERVICE) as daemon, Queue(daemon) as queue:
        stuck = Stuck(daemon)
        daemon.rpc("scale", workers=1)
        wait_until(lambda: stuck.state() is None, 10, "the slot to go")
        # What it had ordered comes late, and finds that nobody wants it.
        os.kill(stuck.template, signal.SIGCONT)
        queue.ended(queue.submit("orphans", count=10))
        wait_until(lambda: not zombies(daemon.pid), 10, "the orphans to be reaped")
        daemon.rpc("scale", workers=2)
        wait_until(lambda: len(daemon.worker_pids()) == 2, 20, "the slot to come back")
        known = {child["pid"] for child in daemon.status()["children"]} | {daemon.pid}
        wait_until(lambda: set(daemon.left()) == known, 10, f"nobody else to be there: {daemon.left()}")


def test_a_template_that_dies_owing_a_child_that_is_not_wanted_any_more() -> None:
    with Daemon(SERVICE) as daemon, Queue(daemon) as queue:
        stuck = Stuck(daemon)
        daemon.rpc("scale", workers=1)
        os.kill(stuck.template, signal.SIGKILL)
        wait_until(lambda: stuck.state() is None, 10, "the slot to go")
        queue.ended(queue.submit("orphans", count=10))
        wait_until(lambda: not zombies(daemon.pid), 10, "the orphans to be reaped")
        daemon.rpc("scale", workers=2)
        wait_until(lambda: len(daemon.worker_pids()) == 2, 30, "the slot to come back")


def test_a_broker_that_does_not_end_holds_up_no_stop_now() -> None:
    daemon = Daemon(SERVICE)
    try:
        daemon.start()
        broker = daemon.child("broker")["pid"]
        os.kill(broker, signal.SIGSTOP)
        begun = time.monotonic()
        daemon.signal(signal.SIGQUIT)
        assert daemon.wait(20) == 0
        assert time.monotonic() - begun < 4.0 * PATIENCE
        daemon.assert_nothing_left()
    finally:
        daemon.close()


def test_a_child_that_the_kernel_does_not_end_is_left_behind() -> None:
    """It is in the freezer of a control group, where SIGKILL waits until it is thawed, as in a system call that hangs."""
    group = Path(f"/sys/fs/cgroup/freezer/upnextd-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no freezer of version 1, in which a killed process stays, can be used here")
    frozen = group / "freezer.state"
    try:
        with Daemon(SERVICE, args=("--hang-timeout", "1")) as daemon:
            pid = daemon.worker_pids()["worker-2"]
            (group / "tasks").write_text(str(pid))
            frozen.write_text("FROZEN")
            wait_until(
                lambda: f"worker-2[{pid}] did not end 10 s after SIGKILL" in daemon.log(), 40, "it to be left behind"
            )
            wait_until(lambda: daemon.worker_pids().get("worker-2", pid) != pid, 20, "the slot to have another")
            frozen.write_text("THAWED")
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "it to end, and to be reaped")
    finally:
        frozen.write_text("THAWED")
        wait_until(lambda: not (group / "tasks").read_text().strip(), 10, "the group to be empty")
        group.rmdir()


def zombies(pid: int) -> list[int]:
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(int(child))
        except OSError:
            continue
    return found
