"""The queue of a daemon under test, asked directly: a command line costs half a second each time."""

from __future__ import annotations

from typing import Any, Self

import orjson

from tests.support.daemon import Daemon
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import jobs
from upnext.errors import JobNotFoundError


class Queue:
    """Submits to, and looks into, the queue that `daemon` works on."""

    def __init__(self, daemon: Daemon) -> None:
        self.broker = SyncQueueClient(daemon.broker_url, daemon.namespace or "default", name="upnext-test")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()

    def submit(self, task: str, **arguments: Any) -> str:
        return self.broker.submit(Submission(task, orjson.dumps(arguments)))

    def submit_many(self, task: str, many: list[dict[str, Any]]) -> list[str]:
        return self.broker.submit_many([Submission(task, orjson.dumps(arguments)) for arguments in many])

    def job(self, job_id: str) -> jobs.Job | None:
        """None: not known."""
        try:
            return jobs.job(self.broker, self.broker.keys, job_id)
        except JobNotFoundError:
            return None

    def ended(self, job_id: str, timeout_s: float = 30.0) -> jobs.Job:
        """The job, once it has ended."""

        def look() -> jobs.Job | None:
            found = self.job(job_id)
            return found if found is not None and found.status in jobs.ENDED else None

        return wait_until(look, timeout_s, f"{job_id} to end") or self._never()

    def statuses(self, job_ids: list[str]) -> list[JobStatus | None]:
        return [None if (found := self.job(job_id)) is None else found.status for job_id in job_ids]

    @staticmethod
    def _never() -> jobs.Job:
        raise AssertionError("unreachable")
