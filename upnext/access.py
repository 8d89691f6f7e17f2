"""The SDK's one door to the engine: the brokers it submits through, and the attempt that the calling code runs in.

Connections are made at the first call, never at import. The protocols say what the SDK asks of the engine, and nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

from upnext.core.keys import Keys
from upnext.core.outcome import Outcome
from upnext.core.spec import TaskOptions, TaskSpec
from upnext.core.submission import Submission
from upnext.engine.attempt import CURRENT
from upnext.engine.client import per_loop
from upnext.engine.redis.scripts import Call

T = TypeVar("T")


class AsyncBroker(Protocol):
    """The operations of a queue, of one event loop."""

    def submit(self, s: Submission, /) -> Coroutine[Any, Any, str]: ...
    async def submit_many(self, many: Sequence[Submission], /) -> list[str]: ...
    async def submit_and_wait(self, s: Submission, /, timeout_s: float | None) -> tuple[str, Outcome]: ...
    async def send(
        self,
        event: str,
        payload: bytes,
        known_handlers: Sequence[str],
        parent_id: str | None = None,
        root_id: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float | None = None,
        trace: str | None = None,
        own: dict[str, Any] | None = None,
    ) -> list[str]: ...
    async def wait(self, job_id: str, /, timeout_s: float | None) -> Outcome: ...
    async def cancel(self, job_id: str, /) -> bool: ...


class SyncQueueClient(Protocol):
    """The same operations, blocking; of one process, from any of its threads."""

    def submit(self, s: Submission, /) -> str: ...
    def submit_many(self, many: Sequence[Submission], /) -> list[str]: ...
    def submit_and_wait(self, s: Submission, /, timeout_s: float | None) -> tuple[str, Outcome]: ...
    def send(
        self,
        event: str,
        payload: bytes,
        known_handlers: Sequence[str],
        parent_id: str | None = None,
        root_id: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float | None = None,
        trace: str | None = None,
        own: dict[str, Any] | None = None,
    ) -> list[str]: ...
    def wait(self, job_id: str, /, timeout_s: float | None) -> Outcome: ...
    def cancel(self, job_id: str, /) -> bool: ...


class LookingClient(Protocol):
    """What the views of the engine take: blocking, of one process, from any of its threads."""

    keys: Keys

    def run(self, call: Call[T], /) -> T: ...


class RunningAttempt(Protocol):
    """One try of a job, seen from inside it. `loop` is None in a pool process, which gives the slot back by `parked`."""

    @property
    def job_id(self) -> str: ...
    @property
    def spec(self) -> TaskSpec: ...
    @property
    def attempt(self) -> int: ...
    @property
    def max_attempts(self) -> int | None: ...
    @property
    def started_at(self) -> float: ...
    @property
    def parent_id(self) -> str | None: ...
    @property
    def root_id(self) -> str | None: ...
    @property
    def crashes(self) -> int: ...
    @property
    def options(self) -> TaskOptions: ...
    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def broker(self) -> AsyncBroker: ...
    @property
    def lifespan_state(self) -> Any: ...

    state: dict[str, Any] | None
    """What the job has noted: `progress`, `message`, `checkpoint`; read before a later attempt begins."""

    def note(self, fields: dict[str, Any]) -> None:
        """Change `state`, and keep it with the job. From any thread."""
        ...

    def suspended(self) -> AbstractAsyncContextManager[Any]:
        """Gives the concurrency slot back for the time of the block. Several may be open at once.

        Leaving it waits for a slot, unless the block ended by an error.
        """
        ...

    def parked(self) -> AbstractContextManager[Any]:
        """The same in a pool process; leaving it blocks its thread."""
        ...


async_broker: Callable[[str | None], AsyncBroker] = per_loop.async_broker
"""-> the broker of the running loop. Raises NoBrokerError when no URL is set anywhere."""


def sync_broker(redis_url: str | None) -> SyncQueueClient:
    """The blocking broker of this process. Raises NoBrokerError when no URL is set anywhere."""
    return per_loop.sync_broker(redis_url)


def looking_client(redis_url: str | None) -> LookingClient:
    """`sync_broker` for the views. Raises NoBrokerError when no URL is set anywhere."""
    return per_loop.sync_broker(redis_url)


async def aclose() -> None:
    """Closes the connections that `submit`, `wait`, `send` and futures opened in the running loop.

    Optional: a program that ends without it loses nothing and is warned of nothing. The next call connects again. Only a loop of uvloop
    that is closed by hand, without `loop.shutdown_asyncgens()`, has a ResourceWarning for each connection that is open.
    """
    await per_loop.aclose()


def current_attempt() -> RunningAttempt | None:
    """The attempt that this code runs in; None outside a task."""
    return CURRENT.get(None)


def lineage() -> tuple[str | None, str | None]:
    """-> (parent id, root id) of whatever is submitted here; both None outside a task."""
    attempt = current_attempt()
    if attempt is None:
        return None, None
    return attempt.job_id, attempt.root_id or attempt.job_id


@asynccontextmanager
async def slot_given_back() -> AsyncGenerator[None]:
    """While a task waits for another job, its place among the worker's concurrent jobs is free: nested flows finish at concurrency 1."""
    attempt = current_attempt()
    home = attempt.loop if attempt is not None else None
    if attempt is None:
        yield
    elif home is None:
        parked = attempt.parked()
        parked.__enter__()
        try:
            yield
        except BaseException as error:
            await asyncio.to_thread(parked.__exit__, type(error), error, error.__traceback__)
            raise
        await asyncio.to_thread(parked.__exit__, None, None, None)
    elif home is asyncio.get_running_loop():
        async with attempt.suspended():
            yield
    else:  # a loop of the task's own, in its thread
        manager = attempt.suspended()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_enter(manager), home))
        try:
            yield
        except BaseException as error:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_leave(manager, error), home))
            raise
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_leave(manager, None), home))


@contextmanager
def slot_given_back_sync() -> Generator[None]:
    """The same from a plain `def` task. On the worker's own loop thread it does nothing: there the caller blocks everybody anyway."""
    attempt = current_attempt()
    home = attempt.loop if attempt is not None else None
    if attempt is not None and home is None:
        with attempt.parked():
            yield
        return
    if attempt is None or home is None or _running_loop() is home:
        yield
        return
    manager = attempt.suspended()
    asyncio.run_coroutine_threadsafe(_enter(manager), home).result()
    try:
        yield
    except BaseException as error:
        asyncio.run_coroutine_threadsafe(_leave(manager, error), home).result()
        raise
    asyncio.run_coroutine_threadsafe(_leave(manager, None), home).result()


def _enter(manager: AbstractAsyncContextManager[T]) -> Coroutine[Any, Any, T]:
    return manager.__aenter__()


async def _leave(manager: AbstractAsyncContextManager[Any], error: BaseException | None) -> None:
    """`error` is how the block ended; it goes on to the caller from there, not from here."""
    if error is None:
        await manager.__aexit__(None, None, None)
    else:
        await manager.__aexit__(type(error), error, error.__traceback__)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
