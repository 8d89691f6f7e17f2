"""What children print and log arrives line by line, marked; nobody who floods or doesn't read holds the supervisor up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.queue import Queue
from tests.support.waiting import PATIENCE, wait_until

SERVICE = """
    import asyncio, logging, subprocess, sys, time
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)
    log = logging.getLogger("shop")

    @worker.task
    async def speak(name: str) -> None:
        log.warning("async %s\\nsecond line", name)
        print("printed", name)
        print("complained", name, file=sys.stderr)
        await asyncio.sleep(0)
        await asyncio.to_thread(log.info, "threaded %s", name)
        subprocess.run(["echo", "echoed", name])

    @worker.task
    def shout(name: str) -> None:
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("sync %s", name)

    pooled_worker = upnext.Worker("pooled", concurrency=1, sync_executor="process")

    @pooled_worker.task
    def pooled(name: str) -> None:
        log.warning("pooled %s\\nsecond line", name)
        print("pool printed", name)

    @worker.task
    def flood(seconds: float, least: int = 0) -> int:
        end, lines = time.monotonic() + seconds, 0
        while time.monotonic() < end or lines < least:
            sys.stdout.write("spam " * 20 + "\\n")
            lines += 1
        return lines
"""


def lines(daemon: Daemon, text: str) -> list[str]:
    return [line for line in daemon.log().splitlines() if text in line]


def test_text_has_slot_pid_and_job() -> None:
    with Daemon(SERVICE, workers=1) as daemon, Queue(daemon) as queue:
        pid = daemon.worker_pids()["worker-1"]
        async_id, sync_id = queue.submit("speak", name="ann"), queue.submit("shout", name="bob")
        pooled_id = queue.submit("pooled", name="cat")
        for job_id in (async_id, sync_id, pooled_id):
            queue.ended(job_id)
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
        for pattern in (
            rf"{stamp}worker-1\[{pid}\] {re.escape(async_id)} warning: shop: async ann\n    second line\n",
            rf"{stamp}worker-1\[{pid}\] {re.escape(async_id)} info: shop: threaded ann\n",
            rf"{stamp}worker-1\[{pid}\] {re.escape(async_id)} printed ann\n",
            rf"{stamp}worker-1\[{pid}\] {re.escape(async_id)} complained ann\n",
            rf"{stamp}worker-1\[{pid}\] echoed ann\n",
            rf"{stamp}worker-1\[{pid}\] {re.escape(sync_id)} error: shop: sync bob\n    Traceback",
            rf"{stamp}worker-1\[{pid}\] {re.escape(pooled_id)} warning: shop: pooled cat\n    second line\n",
            rf"{stamp}worker-1\[{pid}\] {re.escape(pooled_id)} pool printed cat\n",
        ):
            wait_until(lambda pattern=pattern: re.search(pattern, daemon.log()), 5, f"{pattern} in the log")


def test_json_is_one_object_a_line_and_the_file_is_reopened() -> None:
    daemon = Daemon(SERVICE, workers=1, args=("--log-format", "json", "--log-file", "upnextd.json"))
    path = daemon.directory / "upnextd.json"

    def output() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    with daemon, Queue(daemon) as queue:
        job_id = queue.submit("speak", name="ann")
        queue.ended(job_id)
        wait_until(lambda: any(line["message"] == "echoed ann" for line in output()), 5)
        record = next(line for line in output() if line["message"].startswith("async ann"))
        assert record["message"] == "async ann\nsecond line"
        assert (record["slot"], record["level"], record["logger"], record["job_id"]) == (
            "worker-1",
            "warning",
            "shop",
            job_id,
        )
        assert record["pid"] == daemon.worker_pids()["worker-1"]
        assert {"at", "slot", "pid", "level", "message"} <= set(output()[0])
        assert daemon.log() == "", "nothing goes to stderr beside the file"
        old = path.rename(daemon.directory / "old.json")
        daemon.signal(signal.SIGUSR1)
        wait_until(path.exists, 5, "a new file")
        size = old.stat().st_size
        queue.ended(queue.submit("speak", name="eve"))
        wait_until(lambda: any("eve" in line["message"] for line in output()), 5)
        assert old.stat().st_size == size
        assert path.stat().st_mode & 0o007 == 0


def test_a_flood_is_cut_and_counted_and_holds_nobody_up() -> None:
    with Daemon(SERVICE, workers=2) as daemon, Queue(daemon) as queue:
        job_id = queue.submit("flood", seconds=3.0)
        slowest_s = 0.0
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            begun = time.monotonic()
            assert daemon.status()["ready_workers"] == 2
            slowest_s = max(slowest_s, time.monotonic() - begun)
        job = queue.ended(job_id)
        print(f"slowest status {slowest_s * 1000:.0f} ms")
        assert slowest_s < 1.0 * PATIENCE
        printed = int(job.value or b"0")

        def counted() -> int:
            return len(lines(daemon, "spam")) + sum(map(int, re.findall(r"(\d+) lines were dropped", daemon.log())))

        wait_until(lambda: abs(counted() - printed) <= 0.01 * printed, 5, "every line to be kept or counted")
        assert len(lines(daemon, "spam")) < 60_000
        assert daemon.child("worker-1")["restarts"] == daemon.child("worker-2")["restarts"] == 0


def test_a_reader_that_stopped_holds_nobody_up() -> None:
    daemon = Daemon(SERVICE, workers=1)
    os.mkfifo(daemon.log_path)
    reader = os.open(daemon.log_path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with daemon, Queue(daemon) as queue:
            # More than the pipe and the supervisor keep, 1.1 MiB together, and more than the 2 MiB that one may print at once.
            queue.ended(queue.submit("flood", seconds=1.0, least=40_000))
            queue.ended(queue.submit("speak", name="ann"))
            assert daemon.status()["ready_workers"] == 1
            os.set_blocking(reader, False)
            got = bytearray()

            def drained() -> bool:
                try:
                    got.extend(os.read(reader, 1 << 20))
                except BlockingIOError:
                    queue.submit("speak", name="late")
                return b"could not be written" in got

            wait_until(drained, 10, "the log to tell what was lost")
    finally:
        os.close(reader)


LEVELS_SERVICE = """
import logging
import upnext
logging.getLogger("shop.chatty").setLevel(logging.INFO)
worker = upnext.Worker("shop")

@worker.task
async def speak() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("shop").log(level, "level %d", level)
    logging.getLogger("shop.chatty").info("has a level of its own")
    print("printed", flush=True)
"""


@pytest.mark.parametrize(
    ("args", "env", "least", "starts"),
    [
        (("--log-level", "WARNING"), {"UPNEXTD_LOG_LEVEL": "debug"}, 30, False),
        ((), {"UPNEXTD_LOG_LEVEL": "debug", "UPNEXT_LOG_LEVEL": "error"}, 10, True),
        ((), {"UPNEXT_LOG_LEVEL": "error"}, 40, False),
        ((), {}, 20, True),
    ],
)
def test_the_least_level(args: tuple[str, ...], env: dict[str, str], least: int, starts: bool) -> None:
    with Daemon(LEVELS_SERVICE, workers=1, args=args, env=env) as daemon, Queue(daemon) as queue:
        queue.ended(queue.submit("speak"))
        # Without lines of the daemon itself there is nothing further to wait for.
        last = (f" upnextd[{daemon.pid}] ", "printed") if starts else ("printed",)
        wait_until(lambda: all(text in daemon.log() for text in last), 5)
        log = daemon.log()
        assert [level for level in (10, 20, 30, 40) if f"shop: level {level}" in log] == list(range(least, 41, 10))
        assert "has a level of its own" in log
        assert (f" upnextd[{daemon.pid}] " in log) == starts, log


def test_a_wrong_level_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(LEVELS_SERVICE)
    for args, env in ((("--log-level", "loud"), {}), ((), {"UPNEXTD_LOG_LEVEL": "loud"})):
        ended = subprocess.run(
            [str(BIN / "upnextd"), "start", "shop.py", *args],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 64
        assert ended.stderr == "upnextd: --log-level 'loud': write one of debug, info, warning, error\n"
