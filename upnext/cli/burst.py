"""`upnext run --burst`: until the queue of the services is empty, and whether a job failed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from upnext.core.outcome import JobStatus
from upnext.core.spec import ServiceSpec
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs, tasks
from upnext.errors import QueueError

log = logging.getLogger("upnext")

LOOK_S = 0.2
LOOKS = 3
"""So many looks one after the other have to find nothing left."""
SOONEST = 500
"""So many delayed jobs of a task are looked at for retries, the soonest ones."""


class Burst:
    """Looks at the tasks of these services, from their broker's side: other workers may take part."""

    def __init__(self, specs: Sequence[ServiceSpec], namespace: str) -> None:
        tasks_at: dict[str, set[str]] = {}
        for spec in specs:
            for worker in spec.workers:
                assert worker.redis_url is not None
                tasks_at.setdefault(worker.redis_url, set()).update(worker.tasks)
        self._places = [
            (SyncQueueClient(url, namespace, name="upnext-burst"), names) for url, names in tasks_at.items()
        ]
        self._failed_before = self._failed()

    async def until_done(self, stopping: asyncio.Event) -> None:
        """Set `stopping` once no job of theirs is queued or running or waits for a retry. A broker that is away is asked again."""
        seen_done = 0
        while not stopping.is_set():
            try:
                # One look is several reads, between which a job may go from one place to another.
                seen_done = seen_done + 1 if await asyncio.to_thread(self._done) else 0
                if seen_done == LOOKS:
                    stopping.set()
                    return
            except QueueError as error:
                log.debug("burst: %s", error)
            await asyncio.sleep(LOOK_S)

    def failed(self) -> bool:
        """Whether a job of theirs has failed for good since this was made, before the first of them started."""
        return self._failed() > self._failed_before

    def _failed(self) -> int:
        return sum(
            facts.stats.get("failed", 0) + facts.stats.get("dead", 0)
            for client, names in self._places
            for facts in tasks.known(client, client.keys)
            if facts.name in names
        )

    def _done(self) -> bool:
        now_ms = time.time_ns() // 1_000_000
        for client, names in self._places:
            own = [one for one in tasks.tasks(client, client.keys, now_ms) if one.name in names]
            if len(own) < len(names):
                return False  # it has not registered yet
            if any(one.queued or one.running for one in own if not one.paused):
                return False
            if any(self._retries(client, one.name) for one in own if one.delayed):
                return False
        return True

    def _retries(self, client: SyncQueueClient, task: str) -> bool:
        return any(one.attempt > 1 for one in jobs.jobs(client, client.keys, JobStatus.DELAYED, task, SOONEST))
