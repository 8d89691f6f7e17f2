"""Children that end, or are to end, while they come to be: the pid, the death, and that a child is ours to reap, in any order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

SERVICE = """
    import os, signal, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=2)

    @worker.task
    async def hello() -> str:
        return "hello"

    HOLD = os.environ["HOLD"]
    forks = 0

    def wait() -> None:
        while os.path.exists(HOLD):
            time.sleep(0.002)

    def in_child() -> None:
        global forks
        forks += 1  # 1: in the process between template and child, 2: in the child
        if forks == 2:
            os._exit = end
            if os.path.exists(HOLD + ".die"):
                os.kill(os.getpid(), signal.SIGKILL)

    end = os._exit
    os.register_at_fork(after_in_child=in_child)

    def linger(code: int) -> None:
        # It has reported the child's pid, and is still there.
        if forks == 1:
            wait()
        end(code)

    os._exit = linger
"""


class Nursery:
    """A daemon in which the process between template and child stays, after its report, until `release`."""

    def __init__(self, workers: int = 2) -> None:
        self.daemon = Daemon(SERVICE, workers=workers)
        self._hold = self.daemon.directory / "hold"
        self._die = self.daemon.directory / "hold.die"
        self.daemon._env |= {"HOLD": str(self._hold)}

    def hold(self, *, booted: bool = True) -> None:
        # Else it is the scheduler's birth that is held up.
        wait_until(lambda: not booted or " ready: " in self.daemon.log(), 20, "the scheduler, too")
        self._hold.touch()

    def die_at_birth(self) -> None:
        self._die.touch()

    def release(self) -> None:
        self._hold.unlink(missing_ok=True)
        self._die.unlink(missing_ok=True)

    def newborn(self, slot: str, before: int | None = None) -> int:
        """The pid of a slot's new child, once it is known."""

        def pid() -> int | None:
            found = {child["slot"]: child["pid"] for child in self.daemon.status()["children"]}.get(slot)
            return found if found != before else None

        return wait_until(pid, 10, f"a new {slot}") or 0


def ready(daemon: Daemon, workers: int) -> bool:
    return len(daemon.worker_pids()) == workers


def zombies(daemon: Daemon) -> list[int]:
    found: list[int] = []
    for child in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(int(child))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("how", ["dies", "is killed", "is scaled away"])
def test_a_child_may_end_before_it_is_ours(how: str) -> None:
    nursery = Nursery()
    with nursery.daemon as daemon:
        before = daemon.worker_pids()
        nursery.hold()
        if how == "dies":
            nursery.die_at_birth()
        daemon.rpc("scale", workers=3)
        pid = nursery.newborn("worker-3")
        if how == "is killed":
            os.kill(pid, signal.SIGKILL)
        if how == "is scaled away":
            daemon.rpc("scale", workers=2)
        wait_until(lambda: not _lives(pid), 10, "the newborn's end")
        nursery.release()
        wait_until(lambda: ready(daemon, 2 if how == "is scaled away" else 3), 20, f"all ready\n{daemon.log()}")
        wait_until(lambda: not zombies(daemon), 10, "no zombie")
        after = daemon.worker_pids()
        assert {slot: after[slot] for slot in before} == before
        if how != "is scaled away":
            assert "worker-3" in after
            assert f"worker-3[{pid}] ended: signal:SIGKILL" in daemon.log()


def test_a_process_between_that_stays_holds_nobody_up_for_ever() -> None:
    """Its child's exit status is never ours to take, and the slot goes on."""
    nursery = Nursery(workers=1)
    with nursery.daemon as daemon:
        before = daemon.worker_pids()["worker-1"]
        nursery.hold()
        os.kill(before, signal.SIGKILL)
        pid = nursery.newborn("worker-1", before)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: f"worker-1[{pid}] ended: unknown" in daemon.log(), 20, "the slot to be given back")
        nursery.release()
        wait_until(lambda: ready(daemon, 1), 20, "all ready")
        wait_until(lambda: not zombies(daemon), 10, "no zombie")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_daemon_may_end_while_its_children_come_to_be(number: signal.Signals) -> None:
    nursery = Nursery(workers=8)
    daemon = nursery.daemon
    try:
        nursery.hold(booted=False)
        daemon.launch()

        def first() -> bool:
            try:
                return any(c["role"] == "worker" and c["pid"] for c in daemon.status()["children"])
            except OSError:
                return False

        wait_until(first, 30, "the first worker's pid")
        daemon.signal(number)
        nursery.release()
        assert daemon.wait(20) == 0
        assert "failed" not in daemon.log()
        daemon.assert_nothing_left()
    finally:
        daemon.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
