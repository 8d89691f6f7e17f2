"""Fetches without waiting: by the script that looks into the lanes in turn, or, while one lane has a backlog, by reading that directly."""

from __future__ import annotations

import time

from upnext.core.batches import LARGE_BYTES
from upnext.core.fetchbudget import MOST_BYTES, FetchBudget
from upnext.core.fetchplan import FetchPlan
from upnext.core.spec import WorkerSpec
from upnext.engine.calls import worker as worker_calls
from upnext.engine.calls.worker import Fetched
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.fetch_connection import FetchConnection
from upnext.engine.worker.intake import Intake
from upnext.engine.worker.membership import Membership

SWEEP_S = 0.02
BACKLOG_JOBS = 64
"""When one look at everything finds so many jobs in a single stream, that stream is read directly until the next look, SWEEP_S later; not
where so many of its task's largest jobs would be over MOST_BYTES."""
HELD_BACK_REREAD_S = 0.8
"""Poll interval for limited tasks that have jobs: the wake-up is only a hint."""


class Polling:
    """Gives what it fetches to `intake`."""

    def __init__(
        self,
        membership: Membership,
        executor: Executor,
        intake: Intake,
        connection: FetchConnection,
        broker: QueueClient,
        worker: WorkerSpec,
        budget: FetchBudget,
    ) -> None:
        self._membership, self._executor, self._intake = membership, executor, intake
        self._connection, self._broker, self._budget = connection, broker, budget
        self._keys = broker.keys
        self._plan = FetchPlan(list(worker.tasks))
        self.near: str | None = None
        """The task whose job came last by the waiting read: it is looked at first."""
        self.problem: str | None = None
        """The broker's error reply about one task, in the last fetch."""
        self._readable: dict[str, tuple[str, str]] = {}
        self._backlog: str | None = None
        self._largest = LARGE_BYTES
        self._swept_at = 0.0

    def read_directly(self, lanes: dict[str, tuple[str, str]]) -> None:
        """By stream, the (task, lane) that may be read without the script: not those of paused or limited tasks."""
        self._readable = lanes
        self._backlog = None

    async def backlog(self, budget: int) -> int:
        """Read the lane with a backlog, if it is its time. -> jobs taken"""
        stream = self._backlog
        if stream is None or budget < BACKLOG_JOBS or time.monotonic() - self._swept_at >= SWEEP_S:
            return 0
        # without the script: it would copy every payload twice
        most = min(budget, MOST_BYTES // self._largest)
        entries = await self._connection.read(stream, most)
        found = len(entries)
        if found < most:
            self._backlog = None
        if found:
            self._intake.take(*self._readable[stream], entries)
            if self._budget.entry_bytes > self._largest:  # of a producer that doesn't note it: the script does
                self._backlog = None
            self._executor.wake_runner()
        return found

    async def fetch(self, budget: int, *, everywhere: bool) -> tuple[int, float | None]:
        """-> (jobs taken, seconds after which a limited task may have a permit)."""
        near, self.near = self.near, None
        tasks, lanes = self._plan.turn(near, everywhere=everywhere, always=self._intake.limited)
        got = await self._run(tasks, lanes, budget, most_limited=self._most_limited())
        self._swept_at = time.monotonic()
        self._backlog = None
        if len(got.entries) == 1 and len(got.entries[0][2]) >= BACKLOG_JOBS:
            stream = self._keys.stream(*got.entries[0][:2])
            self._largest = max(got.largest, LARGE_BYTES)
            fits = BACKLOG_JOBS * self._largest <= MOST_BYTES
            self._backlog = stream if stream in self._readable and fits else None
        found = 0
        for task, lane, entries in got.entries:
            found += len(entries)
            self._intake.take(task, lane, entries)
        if found:
            self._plan.gave(dict.fromkeys(task for task, _, _ in got.entries))
            self._executor.wake_runner()
        wait_s = None
        if got.retry_after_ms is not None:
            wait_s = got.retry_after_ms / 1000
        if got.held_back:
            wait_s = min(wait_s or HELD_BACK_REREAD_S, HELD_BACK_REREAD_S)
        return found, wait_s

    async def fetch_suspect(self) -> tuple[bool, bool]:
        """-> (whether one was taken, whether limits hold some back)."""
        tasks, lanes = self._plan.turn(everywhere=True)
        got = await self._run(tasks, lanes, 1, suspect=True, most_limited=1)
        for task, lane, entries in got.entries:
            self._intake.take(task, lane, entries)
            self._plan.gave([task])
        self._executor.wake_runner()
        return bool(got.entries), got.held_back

    async def _run(
        self, tasks: list[str], lanes: list[str], budget: int, *, suspect: bool = False, most_limited: int
    ) -> Fetched:
        got = await self._broker.run(
            worker_calls.fetch(
                self._keys,
                self._membership.epoch,
                self._membership.consumer,
                tasks,
                budget=budget,
                suspect=suspect,
                lanes=lanes,
                most_limited=most_limited,
            )
        )
        self._membership.saw_server_time(got.server_ms)
        self.problem = got.problem
        return got

    def _most_limited(self) -> int:
        """As many of a limited task as can start; one may wait for the next slot, or a busy worker would never take any."""
        executor, limited = self._executor, self._intake.limited
        waiting = sum(held[0].spec.name in limited for held in executor.held) if limited else 0
        return max(0 if waiting else 1, executor.free - waiting)
