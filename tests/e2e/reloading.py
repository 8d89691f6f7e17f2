"""What the tests of reload, recycling and upgrade share: a service with a version, a ledger outside of Redis, and load."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Self

from tests.support.daemon import Daemon
from tests.support.waiting import wait_until
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient

QUICK = {"UPNEXTD_CANARY_S": "0.3"}

SERVICE = """
    import asyncio, os, time
    import upnext

    VERSION = {version}
    LEDGER = os.environ["LEDGER"]

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    async def version() -> int:
        return VERSION

    @worker.task
    async def note(number: int, seconds: float = 0.01) -> None:
        # One write, so that lines of several processes don't mix; before and after, so that an interrupted run shows.
        write(f"start {{number}}\\n")
        await asyncio.sleep(seconds)
        write(f"end {{number}}\\n")

    @worker.task
    async def hold() -> int:
        # Runs until the test lets it end.
        while not os.path.exists(LEDGER + ".go"):
            await asyncio.sleep(0.02)
        return VERSION

    @worker.task
    def block(seconds: float) -> None:
        time.sleep(seconds)

    @worker.task
    async def eat(mebibytes: int) -> None:
        held.append(bytearray(mebibytes << 20))

    held = []

    def write(line):
        fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line.encode())
        os.close(fd)

    {extra}
"""


def source(version: int, extra: str = "") -> str:
    return SERVICE.format(version=version, extra=extra.replace("\n", "\n    "))


def make(workers: int = 2, *, args: tuple[str, ...] = (), extra: str = "", env: dict[str, str] | None = None) -> Daemon:
    """A daemon that is not started; its ledger is in its directory."""
    daemon = Daemon(source(1, extra), workers=workers, args=args, env={**QUICK, **(env or {})})
    daemon._env["LEDGER"] = str(ledger_path(daemon))
    return daemon


def ledger_path(daemon: Daemon) -> Path:
    return daemon.directory / "ledger"


def start_hold(daemon: Daemon) -> str:
    """Submits `hold` -> its job id, once it runs."""
    job_id = daemon.cli("call", "hold").stdout.strip()
    wait_until(lambda: any(child["in_flight"] for child in daemon.status()["children"]), 10, "hold to run")
    return job_id


def let_go(daemon: Daemon) -> None:
    """Every `hold` ends."""
    ledger_path(daemon).with_name("ledger.go").touch()


def ledger(daemon: Daemon) -> tuple[Counter[int], Counter[int]]:
    """(starts, ends) by number."""
    starts: Counter[int] = Counter()
    ends: Counter[int] = Counter()
    path = ledger_path(daemon)
    for line in path.read_text().splitlines() if path.exists() else []:
        word, number = line.split()
        (starts if word == "start" else ends)[int(number)] += 1
    return starts, ends


class Load:
    """Submits `note` jobs at a steady rate, and watches how many workers are ready, until it is left."""

    def __init__(self, daemon: Daemon, *, per_s: float = 100.0, seconds: float = 0.01) -> None:
        self.submitted = 0
        self.least_ready = 1 << 30
        self._daemon = daemon
        self._pause_s = 1 / per_s
        self._seconds = seconds
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._submit), threading.Thread(target=self._watch)]
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _submit(self) -> None:
        broker = SyncQueueClient(self._daemon.broker_url, self._daemon.namespace or "default")
        try:
            while not self._stop.wait(self._pause_s):
                payload = b'{"number":%d,"seconds":%f}' % (self.submitted, self._seconds)
                broker.submit(Submission("note", payload))
                self.submitted += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the test that uses it is to see it
            self.errors.append(error)
        finally:
            broker.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.least_ready = min(self.least_ready, self._daemon.status()["ready_workers"])
            except OSError:
                # An upgrade hangs up on its clients.
                continue


def all_done(daemon: Daemon, load: Load) -> bool:
    _, ends = ledger(daemon)
    return len(ends) == load.submitted
