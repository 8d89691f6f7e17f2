"""What a service that runs in one process says of itself, in the shape of a daemon's `status`: a daemon with the one slot `run`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from upnext.core.spec import ServiceSpec
from upnext.engine.attempt import Attempt

SLOT = "run"
ANSWERS_WITHIN_S = 1.0
HUNG_S = 30.0
"""A loop that has not answered for so long hangs."""


class LocalStatus:
    """Of the workers on one loop. `running` gives the attempts that run now; it is called on that loop only."""

    def __init__(self, service: ServiceSpec, namespace: str, running: Callable[[], Iterable[Attempt]]) -> None:
        self._service, self._namespace, self._running = service, namespace, running
        self._loop: asyncio.AbstractEventLoop | None = None
        self._born_at = self._answered_at = time.monotonic()
        self._in_flight: list[dict[str, Any]] = []
        self.done = 0
        self.failed = 0
        self._is_retried = False

    def start(self) -> None:
        """On the loop of the workers."""
        self._loop = asyncio.get_running_loop()
        self._born_at = self._answered_at = time.monotonic()

    def retried(self) -> None:
        """What is counted next is an attempt that failed and was not its job's last."""
        self._is_retried = True

    def count(self, *, ok: bool) -> None:
        """An attempt has ended: with its job, unless the job was put back."""
        self.done += ok
        self.failed += not ok and not self._is_retried
        self._is_retried = False

    async def ask(self) -> dict[str, Any] | None:
        """From the loop of a scheduler: what is so now. Of a loop that is blocked, what was so last, and for how long it is silent."""
        if self._loop is None or self._loop.is_closed():
            return None
        looking = asyncio.run_coroutine_threadsafe(self._look(), self._loop)
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await asyncio.wrap_future(looking)
        except TimeoutError:
            pass
        return self._status()

    async def _look(self) -> None:
        now_s = time.time()
        self._in_flight = [
            {"job_id": one.job_id, "task": one.spec.name, "age_s": round(now_s - one.started_at, 3)}
            for one in self._running()
        ]
        self._answered_at = time.monotonic()

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        silent_s = round(now - self._answered_at, 3)
        slot = {
            "slot": SLOT,
            "role": "worker",
            "pid": os.getpid(),
            "state": "HUNG" if silent_s > HUNG_S else "READY",
            "generation": None,
            "incarnation": 1,
            "uptime_s": round(now - self._born_at, 3),
            "heartbeat_age_s": silent_s,
            "in_flight": self._in_flight,
            "jobs_done": self.done,
            "jobs_failed": self.failed,
            "rss_bytes": _rss_bytes(),
            "pss_bytes": None,
            "restarts": 0,
            "last_exit": None,
        }
        return {
            "pid": os.getpid(),
            "name": self._service.name,
            "version": version("upnext"),
            "service": self._service.file,
            "service_name": self._service.name,
            "namespace": self._namespace,
            "mode": "running",
            "generation": None,
            "desired_workers": 1,
            "ready_workers": 1,
            "exit_when_drained": False,
            "problem": None,
            "broker": None,
            "children": [slot],
        }


def _rss_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None
