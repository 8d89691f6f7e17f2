"""Lifespans under the daemon: one that fails is the service's own trouble, and no reason to give up."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until

SERVICE = """
import os
from contextlib import asynccontextmanager
import upnext

worker = upnext.Worker("jobs")
{top}

@worker.lifespan
@asynccontextmanager
async def database():
    with open({seen!r}, "a") as file:
        file.write(f"entered {{os.getpid()}}\\n")
    {check}
    yield {value!r}
    with open({seen!r}, "a") as file:
        file.write(f"left {{os.getpid()}}\\n")

@worker.task
async def ask() -> str:
    return upnext.get_current_context().state

@worker.task
def ask_in_thread() -> str:
    return upnext.get_current_context().state
"""


class Seen:
    """What lifespans wrote, and the database that they need."""

    def __init__(self, folder: Path) -> None:
        self.file, self.database = folder / "seen", folder / "database"
        self.file.touch()

    def source(self, value: str, *, needs: bool = True) -> str:
        check = f"open({str(self.database)!r}).close()" if needs else "pass"
        return SERVICE.format(top="", seen=str(self.file), check=check, value=value)

    def count(self, what: str) -> int:
        return self.file.read_text().count(what)


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def test_it_is_entered_in_each_worker_and_left_at_the_end(seen: Seen) -> None:
    seen.database.touch()
    with Daemon(seen.source("one"), workers=2) as daemon:
        assert seen.count("entered") == 2  # the scheduler has none
        with Queue(daemon) as queue:
            ended = [queue.ended(queue.submit(task)) for task in ("ask", "ask_in_thread")]
            assert [job.value for job in ended] == [b'"one"'] * 2
        pids = set(daemon.worker_pids().values())
        assert daemon.stop() == 0
    entered, left = (
        {int(line.split()[1]) for line in seen.file.read_text().splitlines() if line.startswith(what)}
        for what in ("entered", "left")
    )
    assert entered == left == pids


def test_in_the_first_generation_it_is_tried_without_end(seen: Seen) -> None:
    daemon = Daemon(seen.source("one"), workers=1).launch()
    try:
        # More often than a crash loop allows.
        wait_until(lambda: seen.count("entered") > 7, 120, "it to be tried again and again")
        assert daemon.exit_code is None, daemon.log()
        shown = daemon.ctl("status")
        assert shown.returncode == 4
        problem = daemon.status()["problem"]
        assert "waiting for what the service sets up: worker 'jobs': its lifespan failed: FileNotFoundError" in problem
        seen.database.touch()
        daemon.wait_ready(60)
        assert daemon.ctl("status").returncode == 0
        assert daemon.status()["problem"] is None
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_newer_code_cures_a_first_generation_that_never_was_ready(seen: Seen) -> None:
    daemon = Daemon(seen.source("one"), workers=1).launch()
    try:
        wait_until(lambda: seen.count("entered") > 1, 30, "it to be tried")
        daemon.rewrite(seen.source("two", needs=False))
        reloaded = daemon.ctl("reload", "--wait")
        assert reloaded.returncode == 0, reloaded.stderr
        daemon.wait_ready()
        with Queue(daemon) as queue:
            assert queue.ended(queue.submit("ask")).value == b'"two"'
    finally:
        daemon.close()


def test_in_a_reload_it_fails_the_canary(seen: Seen) -> None:
    with Daemon(seen.source("one", needs=False), workers=2) as daemon:
        daemon.rewrite(seen.source("two"))
        reloaded = daemon.ctl("reload", "--wait")
        assert reloaded.returncode == 1
        assert "its lifespan failed: FileNotFoundError" in reloaded.stderr + reloaded.stdout
        assert daemon.ctl("status").returncode == 0
        with Queue(daemon) as queue:
            assert queue.ended(queue.submit("ask")).value == b'"one"'


def test_in_a_committed_generation_the_others_go_on(seen: Seen) -> None:
    seen.database.touch()
    with Daemon(seen.source("one"), workers=2) as daemon:
        seen.database.unlink()
        before, killed = seen.count("entered"), daemon.child("worker-1")["pid"]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: seen.count("entered") > before + 1, 30, "it to be tried again")
        assert daemon.ctl("status").returncode == 4
        with Queue(daemon) as queue:
            assert queue.ended(queue.submit("ask")).value == b'"one"'
        seen.database.touch()
        daemon.wait_ready(60)
        wait_until(lambda: daemon.ctl("status").returncode == 0, 60, "both workers to be ready")
