"""A stand-in for the broker: keeps what it is given and answers with what it was set to. It has no queue and proves nothing about one.

The SDK's unit tests look at what the SDK asks of the engine; that the engine does it is for the integration suite.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from upnext.access import AsyncBroker, SyncQueueClient
from upnext.core.outcome import JobStatus, Outcome
from upnext.core.spec import TaskSpec
from upnext.core.submission import Submission
from upnext.engine import notes
from upnext.errors import DuplicateJobError


class StandIn:
    """The blocking form; `.asynchronous` is the same one for asyncio."""

    def __init__(self) -> None:
        self.submitted: list[Submission] = []
        self.sent: list[dict[str, Any]] = []
        self.waits: list[tuple[str, float | None]] = []
        self.cancelled: list[str] = []
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.default_outcome = Outcome(JobStatus.DONE, value=b'"done"', begun_ms=1_000, finished_ms=2_500)
        self.urls: list[str | None] = []
        self.asynchronous = AsyncStandIn(self)

    def submit(self, s: Submission, /) -> str:
        for position, other in enumerate(self.submitted):
            if s.idempotency_key is not None and other.idempotency_key == s.idempotency_key:
                raise DuplicateJobError(s.idempotency_key, self._id(other, position))
        self.submitted.append(s)
        return self._id(s, len(self.submitted) - 1)

    @staticmethod
    def _id(s: Submission, position: int) -> str:
        return f"{s.task}:n{position + 1}-0"

    def submit_many(self, many: Sequence[Submission], /) -> list[str]:
        return [self.submit(one) for one in many]

    def submit_and_wait(self, s: Submission, /, timeout_s: float | None) -> tuple[str, Outcome]:
        job_id = self.submit(s)
        return job_id, self.wait(job_id, timeout_s)

    def send(self, event: str, payload: bytes, known_handlers: Sequence[str], *lineage: Any, **rest: Any) -> list[str]:
        self.sent.append(
            {"event": event, "payload": payload, "handlers": tuple(known_handlers), "lineage": lineage, **rest}
        )
        return [f"{handler}:n1-0" for handler in known_handlers]

    def wait(self, job_id: str, /, timeout_s: float | None) -> Outcome:
        self.waits.append((job_id, timeout_s))
        return self.outcomes.get(job_id, self.default_outcome)

    def cancel(self, job_id: str, /) -> bool:
        self.cancelled.append(job_id)
        return True


class AsyncStandIn:
    """Gives the loop a turn before each answer, as a real one would."""

    def __init__(self, standin: StandIn) -> None:
        self._standin = standin

    async def submit(self, s: Submission, /) -> str:
        await asyncio.sleep(0)
        return self._standin.submit(s)

    async def submit_many(self, many: Sequence[Submission], /) -> list[str]:
        await asyncio.sleep(0)
        return self._standin.submit_many(many)

    async def submit_and_wait(self, s: Submission, /, timeout_s: float | None) -> tuple[str, Outcome]:
        await asyncio.sleep(0)
        return self._standin.submit_and_wait(s, timeout_s)

    async def send(
        self, event: str, payload: bytes, known_handlers: Sequence[str], *lineage: Any, **rest: Any
    ) -> list[str]:
        await asyncio.sleep(0)
        return self._standin.send(event, payload, known_handlers, *lineage, **rest)

    async def wait(self, job_id: str, /, timeout_s: float | None) -> Outcome:
        await asyncio.sleep(0)
        return self._standin.wait(job_id, timeout_s)

    async def cancel(self, job_id: str, /) -> bool:
        await asyncio.sleep(0)
        return self._standin.cancel(job_id)


class StandInAttempt:
    """An attempt as the SDK sees it. `open` counts the waits that have given the slot back, `given_back` all of them so far."""

    def __init__(self, standin: StandIn, spec: TaskSpec, loop: asyncio.AbstractEventLoop | None) -> None:
        self.broker: AsyncBroker = standin.asynchronous
        self.spec = spec
        self.loop = loop
        self.job_id = f"{spec.name}:n77-0"
        self.attempt = 2
        self.max_attempts = 4
        self.started_at = 1_700_000_000.0
        self.parent_id: str | None = None
        self.root_id: str | None = None
        self.crashes = 1
        self.options = spec.options
        self.labels: dict[str, str] = {}
        self.cancelled = False
        self.state: dict[str, Any] | None = None
        self.noted = False
        self.lifespan_state: Any = None
        self._standin = standin
        self.given_back = 0
        self.open = 0
        self.parkings = 0
        self.threads: set[int] = set()

    @asynccontextmanager
    async def suspended(self) -> AsyncGenerator[None]:
        self.threads.add(threading.get_ident())
        self.given_back += 1
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def note(self, fields: dict[str, Any]) -> None:
        assert self.loop is not None
        notes.write(self, self.loop, fields)

    async def write_notes(self, state: dict[str, Any], /) -> None:
        await asyncio.sleep(0)
        self._standin.noted.append((self.job_id, dict(state)))

    @contextmanager
    def parked(self) -> Generator[None]:
        self.parkings += 1
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def check(standin: StandIn) -> tuple[SyncQueueClient, AsyncBroker]:
    """The type checker's proof that the stand-in has the interface."""
    return standin, standin.asynchronous
