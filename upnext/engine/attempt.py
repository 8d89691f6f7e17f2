"""The attempt that runs now, as user code and the SDK's Context see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from upnext.core import own_options
from upnext.core.entry import Meta
from upnext.core.retry import GiveUp, RetryIn
from upnext.core.spec import TaskOptions, TaskSpec
from upnext.engine import notes
from upnext.engine.cost import Meter
from upnext.engine.worker.slots import Slot

if TYPE_CHECKING:
    from upnext.engine.client.queue_client import QueueClient

CURRENT: ContextVar[Attempt] = ContextVar("upnext_attempt")
"""Set around user code, in its threads too."""


def current_job_id() -> str | None:
    """The job in whose context this is called."""
    attempt = CURRENT.get(None)
    return None if attempt is None else attempt.job_id


class Attempt:
    """One try of one job. Times: `started_at` Unix seconds. `cancelled` turns true when a client or this worker asked for it to end."""

    __slots__ = (
        "broker",
        "cached",
        "cancelled",
        "cell",
        "entry_id",
        "given_up",
        "lane",
        "loop",
        "meta",
        "meter",
        "noted",
        "options",
        "payload_bytes",
        "redacts",
        "release",
        "retake",
        "runner",
        "slot",
        "span",
        "spec",
        "started_at",
        "state",
        "timed_out",
        "verdict",
        "waits",
    )

    given_up: bool
    """Its end is recorded already, or other workers have the job: what it still does changes nothing."""
    cached: tuple[str, int] | None
    """Under which key its result is to be cached, and for how many ms."""
    verdict: RetryIn | GiveUp | None
    """What was decided about its failure, once there is one."""
    options: TaskOptions
    """Of this job: its task's, save for what it was submitted with."""
    meter: Meter | None
    """Measures what it costs; made when it first waits for something, or ends."""
    redacts: bytes | None
    """Its payload, where the text of an error must not show some of it."""
    span: Any
    """Its OpenTelemetry span, where this process makes spans."""
    noted: bool
    """It has noted something in `state`, which holds what earlier attempts noted, too."""

    def __init__(self, spec: TaskSpec, lane: str, entry_id: bytes, meta: Meta | None, broker: QueueClient) -> None:
        self.spec, self.lane, self.entry_id, self.meta = spec, lane, entry_id, meta
        self.options = spec.options if meta is None or meta.own is None else own_options.applied(spec.options, meta.own)
        self.broker = broker
        self.loop: asyncio.AbstractEventLoop | None = None
        self.cell = -1
        self.slot = Slot.UNSTARTED
        self.started_at = 0.0
        self.cancelled = False
        self.timed_out = False
        self.given_up = False
        self.runner: asyncio.Task[None] | None = None
        self.release: Callable[[], None] | None = None
        self.retake: Callable[[bool], Awaitable[None]] | None = None
        self.state: dict[str, Any] | None = None
        self.noted = False
        self.waits = 0
        self.payload_bytes = 0
        self.cached = self.verdict = self.span = self.redacts = self.meter = None

    @property
    def job_id(self) -> str:
        if self.meta is not None and self.meta.job_id is not None:
            return self.meta.job_id
        return f"{self.spec.name}:{self.lane}{self.entry_id.decode()}"

    @property
    def attempt(self) -> int:
        return self.meta.attempt if self.meta is not None else 1

    @property
    def max_attempts(self) -> int | None:
        retries = self.options.retries
        return None if retries is None else retries + 1

    @property
    def crashes(self) -> int:
        return self.meta.crashes if self.meta is not None else 0

    @property
    def parent_id(self) -> str | None:
        return self.meta.parent_id if self.meta is not None else None

    @property
    def root_id(self) -> str | None:
        return self.meta.root_id if self.meta is not None else None

    @property
    def labels(self) -> dict[str, str]:
        return own_options.labels(self.meta.own) if self.meta is not None else {}

    @property
    def via(self) -> str | None:
        return own_options.via(self.meta.own) if self.meta is not None else None

    @property
    def lifespan_state(self) -> Any:
        """What the worker's lifespan yielded in this process."""
        return self.broker.lifespan_state

    @property
    def home_lane(self) -> str:
        if self.meta is not None and self.meta.lane is not None:
            return self.meta.lane
        return self.lane

    @property
    def later(self) -> bool:
        """Whether it is not the job's first, so that there may be notes of an earlier one."""
        meta = self.meta
        return meta is not None and (meta.attempt > 1 or meta.crashes > 0 or meta.lost_hosts > 0 or meta.noted)

    def note(self, fields: dict[str, Any]) -> None:
        """Keep `fields` with the job. From any thread; what the broker doesn't take is logged, and lost."""
        assert self.loop is not None
        notes.write(self, self.loop, fields)

    async def write_notes(self, state: dict[str, Any], /) -> None:
        await self.broker.note(self.spec.name, self.lane, self.entry_id, self.job_id, state)

    @asynccontextmanager
    async def suspended(self) -> AsyncGenerator[None]:
        """Give the concurrency slot back while the job waits for other jobs; nested flows so finish at concurrency 1.

        Several may be open at once: the slot goes with the first and is taken again after the last. A wait that ends by an error (its
        timeout, a cancel) ends at once, whether there is a slot or not.
        """
        self.begin_wait()
        try:
            yield
        except BaseException:
            await self.end_wait(at_once=True)
            raise
        await self.end_wait(at_once=False)

    def begin_wait(self) -> None:
        self.waits += 1
        if self.waits == 1 and self.release is not None:
            # None in the first step of a job: the executor releases it when that has ended
            self.release()

    async def end_wait(self, *, at_once: bool) -> None:
        self.waits -= 1
        if not self.waits and self.retake is not None:
            # one that has to end needs no slot for that, and waiting for one would take its grace
            await self.retake(at_once or self.cancelled or self.timed_out)

    def parked(self) -> AbstractContextManager[None]:
        """`suspended` for code without the worker's loop: a pool process, which says so to its worker. Does nothing elsewhere."""
        return nullcontext()
