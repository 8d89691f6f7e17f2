"""What jobs start and leave behind ends with their daemon, or at its next start; and a copy of a daemon's state harms nobody."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.servers import Server
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus
from upnextd.shared.leftovers import VARIABLE

SERVICE = """
    import asyncio, json, os, subprocess, time
    import upnext

    worker = upnext.Worker("w", concurrency=4)

    def note(*words) -> None:
        with open(os.environ["TEST_LOG"], "a") as log:
            log.write(json.dumps(words) + "\\n")

    @worker.task
    async def spawn(own_session: bool) -> int:
        return subprocess.Popen(["sleep", "300"], start_new_session=own_session).pid

    @worker.task
    async def spawn_apart() -> int:
        return subprocess.Popen(["sleep", "300"], start_new_session=True, env={"PATH": os.environ["PATH"]}).pid

    @worker.task(timeout=None)
    async def work() -> None:
        note("started", os.environ["TEST_HOST"], time.time(), os.environ["UPNEXTD_DAEMON"])
        # What it starts works on beside it, in a session of its own.
        beside = "while :; do date +%s.%N >> $0; sleep 0.05; done"
        subprocess.Popen(["sh", "-c", beside, os.environ["TEST_BESIDE"]], start_new_session=True)
        await asyncio.sleep(300)
"""


def written(file: Path) -> str:
    """What the process beside the job wrote; a shell makes the file before its first line is there."""
    return file.read_text() if file.exists() else ""


def rows(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_clean_stop_ends_what_jobs_left_running(daemon: Callable[..., Daemon]) -> None:
    one = daemon(SERVICE, workers=1)
    with Queue(one) as queue:
        same, own, apart = (
            int(queue.ended(job_id).value or b"")
            for job_id in (
                queue.submit("spawn", own_session=False),
                queue.submit("spawn", own_session=True),
                queue.submit("spawn_apart"),
            )
        )
    try:
        assert one.stop() == 0
        assert [is_alive(same), is_alive(own)] == [False, False]
        assert is_alive(apart), (
            "with another environment it can't be found: so a job can leave something running on purpose"
        )
        assert "2 processes" in one.log() or "1 process" in one.log()
    finally:
        os.kill(apart, 9)


def test_the_start_after_a_kill_ends_what_jobs_left_running_before_they_run_again(
    own_server: Server, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    log, beside = tmp_path / "log", tmp_path / "beside"
    env = {"TEST_LOG": str(log), "TEST_BESIDE": str(beside), "TEST_HOST": "a"}
    one = daemon(SERVICE, redis_url=own_server.url, workers=1, env=env)
    with Queue(one) as queue:
        queue.submit("work")
        wait_until(lambda: rows(log) and written(beside), 10, "the job to start")
        one.kill()
        killed = time.time()
        wait_until(lambda: float(beside.read_text().split()[-1]) > killed, 5, "it to work on without its daemon")
        one.start()
        wait_until(lambda: len(rows(log)) == 2, 20, "the job to run again")
        [first, second] = rows(log)
        assert first[3] == second[3] == (one.state / "daemon.id").read_text().split()[0]
        between = [float(at) for at in beside.read_text().split() if killed < float(at) < second[2]]
        assert max(between) < second[2] - 0.06, "nothing of the first run was there when the second began"
        assert VARIABLE not in os.environ
        assert one.stop() == 75


def test_a_copy_of_a_state_directory_leaves_the_living_alone(
    own_server: Server, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    log, beside = tmp_path / "log", tmp_path / "beside"

    def env(host: str) -> dict[str, str]:
        return {"TEST_LOG": str(log), "TEST_BESIDE": str(beside), "TEST_HOST": host, "UPNEXT_SERVICE": "shop"}

    original = daemon(SERVICE, redis_url=own_server.tcp_url, workers=1, env=env("a"))
    with Queue(original) as queue:
        job_id = queue.submit("work")
        wait_until(lambda: rows(log) and written(beside), 10, "the job to start")
        copied = tmp_path / "state"
        shutil.copytree(original.state, copied, ignore=shutil.ignore_patterns("*.sock"))
        second = daemon(SERVICE, redis_url=own_server.tcp_url, workers=1, env=env("b"), state=copied)
        wait_until(lambda: second.status()["scheduler"]["epoch"], 10, "its scheduler to know who leads")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 6.0, 30, "more time than its scheduler needs to judge")
        assert [row[1] for row in rows(log)] == ["a"], "the job was not taken from the living"
        assert queue.statuses([job_id]) == [JobStatus.RUNNING]
        last = float(beside.read_text().split()[-1])
        wait_until(lambda: float(beside.read_text().split()[-1]) > last, 5, "what it started to live, too")
        assert "lost host" not in second.log()
        assert original.stop() == 75
        assert second.stop() in (0, 75)
