"""What a service declares, as plain frozen data: the SDK builds these, the engine runs them, neither knows the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Protocol

from upnext.address import Address

LONGEST_S = 100 * 365 * 86400.0
"""No duration is longer: what the broker keeps in milliseconds stays far from the end of its numbers."""


class TaskKind(StrEnum):
    TASK = "task"
    CRON = "cron"
    EVENT = "event"


class SyncExecutor(Enum):
    """Where a plain `def` task runs: in a thread of the worker process, or in a pool process."""

    THREAD = "thread"
    PROCESS = "process"


class MissedRunPolicy(StrEnum):
    """What a cron does about ticks that fell due while no scheduler was there."""

    CATCH_UP = "catch_up"
    """Run each missed tick, oldest first."""
    LATEST_ONLY = "latest_only"
    """Run the newest missed tick once."""
    SKIP = "skip"
    """Run none of them."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` starts in any `period_s`, evenly spread (GCRA).

    burst: so many may start at once after a lull, on top of the even rate: a period may then see up to count + burst - 1 starts.
    """

    count: int
    period_s: float
    burst: int | None = None


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a task, cron or handler; see `Worker.task` for their meaning."""

    retries: int | None = 0
    """None: for ever."""
    retry_delay_s: float = 1.0
    retry_backoff: float = 2.0
    retry_delays_s: tuple[float, ...] = ()
    """One for each retry, the last for all further ones, in place of the two above."""
    retry_max_delay_s: float = 3600.0
    retry_jitter: bool = True
    timeout_s: float | None = 1800.0
    rate_limit: RateLimit | None = None
    max_concurrency: int | None = None
    priority: str = "normal"
    result_ttl_s: float = 600.0
    max_crashes: int = 3
    retry_on: tuple[type[BaseException], ...] = ()
    retry_if: Callable[[BaseException], object] | None = None
    """In place of `retry_on`: true for an error that is retried."""
    no_retry_on: tuple[type[BaseException], ...] = ()
    cache_key: str | Callable[..., str] | None = None
    cache_ttl_s: float | None = None
    shared: bool = False
    redact: tuple[str, ...] = ()
    """Names of arguments whose values are not shown to people."""
    executor: SyncExecutor | None = None
    """Where a plain function runs; None: as its Worker says."""

    @property
    def limited(self) -> bool:
        return self.rate_limit is not None or self.max_concurrency is not None


class Arguments(Protocol):
    """Binds a call to a function's signature and back. Implemented by `upnext.core.binding.Signature`."""

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """-> payload. Raises InvalidArgumentsError (shows the signature) or EncodingError (names the argument)."""
        ...

    def decode(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """-> (args, kwargs) converted by annotation. Raises InvalidArgumentsError."""
        ...

    def encode_result(self, value: Any) -> bytes:
        """-> JSON. Raises EncodingError naming which part of the value has no JSON form, or for one over the cap."""
        ...

    def decode_result(self, raw: bytes) -> Any:
        """JSON -> value converted by the return annotation; plain JSON values where there is none."""
        ...

    def describe(self) -> str:
        """The signature as a person writes it: `process_order(order_id: str, items: list[str]) -> dict`."""
        ...


Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions of the user, plain or async, each called with as many of (ctx, result | error) as it takes, in this order."""

    on_start: tuple[Hook, ...] = ()
    on_success: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()
    on_retry: tuple[Hook, ...] = ()
    on_complete: tuple[Hook, ...] = ()

    def any(self) -> bool:
        return any((self.on_start, self.on_success, self.on_failure, self.on_retry, self.on_complete))

    def within(self, outer: Hooks) -> Hooks:
        """With those of the whole Worker around its own: before them at the start, after them at the end."""
        return Hooks(
            on_start=outer.on_start + self.on_start,
            on_success=self.on_success + outer.on_success,
            on_failure=self.on_failure + outer.on_failure,
            on_retry=self.on_retry + outer.on_retry,
            on_complete=self.on_complete + outer.on_complete,
        )


STEPPED_BACK_MS = 300_000
"""A cron's cursor that is this much ahead of now, and of more than one tick, is from before the clock was set back."""


@dataclass(frozen=True, slots=True)
class CronSpec:
    """When a cron is due. `schedule` has 5 fields, or 6 with seconds first; `timezone` is an IANA name.

    overlap: whether a tick starts a job while that of an earlier tick has not ended; else it is skipped.
    every_ms: in place of `schedule`: ticks at this distance from one another.
    payload: the encoded arguments of each tick's job.
    """

    schedule: str
    timezone: str = "UTC"
    missed: MissedRunPolicy = MissedRunPolicy.LATEST_ONLY
    max_catch_up_s: float | None = None
    overlap: bool = True
    every_ms: int | None = None
    payload: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One registered function. `name` of an event's handler is EVENT.FUNCTION."""

    name: str
    kind: TaskKind
    function: Callable[..., Any]
    is_async: bool
    arguments: Arguments
    options: TaskOptions = field(default_factory=TaskOptions)
    hooks: Hooks = field(default_factory=Hooks)
    event: str | None = None
    cron: CronSpec | None = None


OpenLifespan = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens what is set up in a process before its first job, and taken down after the last; what it yields is shown to the jobs."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One Worker of a service: what a child process runs for it."""

    name: str
    concurrency: int
    tasks: Mapping[str, TaskSpec]
    prefetch: int | None = None
    sync_executor: SyncExecutor = SyncExecutor.THREAD
    sync_pool_size: int | None = None
    redis_url: str | None = None
    lifespan: OpenLifespan | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiSpec:
    """One Api of a service. `app` is an ASGI application, `lifespan` enters all that is to be there before the first request."""

    name: str
    address: Address
    app: Any
    lifespan: OpenLifespan
    processes: int = 1
    graceful_timeout_s: float = 30.0
    redis_url: str | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service: the workers and Apis of one file or module.

    `name` is the service's own (not the daemon's); `path` its source, to re-import it in pool processes; `file` where that is, to show.
    `loader` (`module:function`) is what imports it there: called with `path`, it returns something whose `.spec` is a ServiceSpec.
    `declared` holds all workers of the module, `workers` those of them that run here (`--only`); empty: the same.
    """

    name: str
    workers: tuple[WorkerSpec, ...]
    path: str | None = None
    loader: str | None = None
    file: str | None = None
    declared: tuple[WorkerSpec, ...] = ()
    apis: tuple[ApiSpec, ...] = ()

    @property
    def served_tasks(self) -> tuple[TaskSpec, ...]:
        """What runs here."""
        return tuple(task for worker in self.workers for task in worker.tasks.values())

    @property
    def declared_tasks(self) -> tuple[TaskSpec, ...]:
        """All that the module declares."""
        return tuple(task for worker in self.declared or self.workers for task in worker.tasks.values())
