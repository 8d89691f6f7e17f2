"""What a job may have around its function: a cached result, hooks, a thread or a pool process, the checkpoint of an earlier attempt.

A plain async job has nothing of this and never comes here.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from upnext.core.keys import Keys
from upnext.core.retry import RetryIn
from upnext.core.spec import WorkerSpec
from upnext.engine.attempt import Attempt
from upnext.engine.cost import CpuClock, Meter
from upnext.engine.worker.cache import look
from upnext.engine.worker.failures import (
    JobCancelled,
    PoolCrash,
    RemoteError,
    check_heeded,
    classify_error,
    retry_decision,
)
from upnext.engine.worker.overrunning import Lingering
from upnext.engine.worker.pool import ProcessPool
from upnext.engine.worker.slots import Event, Slot
from upnext.engine.worker.task_run import TaskRun
from upnext.engine.worker.threads import Threads
from upnext.engine.worker.turns import Turns
from upnext.errors import QueueError

log = logging.getLogger("upnext.worker")

GRACE_S = 5.0
"""What a job gets to end after it was cancelled or timed out, before its process is to be replaced."""
HOOK_S = 30.0
"""What an async hook may take. One that runs because of a cancel or a timeout has to end within the grace."""
LAST_HOOK_S = GRACE_S - 1.0


class Deadlines(Protocol):
    """An attempt's timeout: it starts when its function does, not while it waits for a thread or a process."""

    def start(self, attempt: Attempt) -> None: ...
    def stop(self, attempt: Attempt) -> None: ...


class Around:
    """`stuck(job id, reason)` asks for the replacement of this process."""

    def __init__(
        self,
        worker: WorkerSpec,
        keys: Keys,
        deadlines: Deadlines,
        rng: random.Random,
        stuck: Callable[[str, str], None],
        lingering: Lingering,
        pool_setup: bytes | None,
        cpu_clock: CpuClock,
    ) -> None:
        self._cpu_clock = cpu_clock
        self._keys, self._deadlines, self._rng = keys, deadlines, rng
        self._giving_up = False
        self._stuck, self._lingering = stuck, lingering
        self._loop = asyncio.get_running_loop()
        size = worker.sync_pool_size or worker.concurrency
        self._threads = Threads()
        self._pool = (
            ProcessPool(pool_setup, size, lifespan=worker.lifespan is not None) if pool_setup is not None else None
        )
        # slots bound them already, unless the pool is the smaller
        self._permits: Turns[_Place] | None = Turns(size, _nothing_else) if size < worker.concurrency else None

    def give_up(self) -> None:
        """From now on a cancelled job is not over: this process ends, and it goes to another worker."""
        self._giving_up = True

    async def aclose(self) -> None:
        self._threads.close()
        if self._pool is not None:
            await self._pool.aclose()

    async def run(self, attempt: Attempt, task: TaskRun, payload: bytes, *, later: bool) -> bytes:
        """The whole of an attempt -> its value, encoded. `later`: it isn't the job's first."""
        hooks = attempt.spec.hooks
        if later:
            await self._recall(attempt)
        if task.cache is not None:
            args, kwargs = task.decode(payload)
            key = task.cache.key(args, kwargs)
            if key is not None:
                known = await look(attempt, self._keys, key)
                if known is not None:
                    return known
                attempt.cached = (key, task.cache.ttl_ms)
        try:
            if hooks.on_start:
                await self._call(hooks.on_start, attempt, None)
            raw, value = await self._do(attempt, task, payload)
            check_heeded(attempt)
        except BaseException as caught:
            if isinstance(caught, asyncio.CancelledError) and self._giving_up:
                raise  # the job is not over: it goes to another worker
            error = classify_error(attempt, caught)
            try:
                again = self._decide(attempt, error)
                if task.hooked:
                    await self._run_failure_hooks(attempt, error, again)
                if error is caught:
                    raise
                raise error from None
            finally:
                del error  # it holds this frame
        self._deadlines.stop(attempt)  # it is done: a slow hook doesn't make it late
        if task.hooked:
            await self._call(hooks.on_success, attempt, value)
            await self._call(hooks.on_complete, attempt, value)
        return raw

    async def _recall(self, attempt: Attempt) -> None:
        try:
            attempt.state = await attempt.broker.read_notes(attempt.job_id) or None
        except QueueError as error:
            log.warning("the checkpoint of %s can't be read: %s", attempt.job_id, error)

    def _decide(self, attempt: Attempt, error: BaseException) -> bool:
        """Whether there will be another attempt; what was decided is kept for the executor, so that it is decided once."""
        if isinstance(error, JobCancelled):
            return False
        if isinstance(error, PoolCrash):
            return attempt.crashes + 1 < attempt.spec.options.max_crashes
        if isinstance(error, RemoteError):
            return error.delay_s is not None
        attempt.verdict = retry_decision(attempt, error, self._rng)
        return isinstance(attempt.verdict, RetryIn)

    async def _run_failure_hooks(self, attempt: Attempt, error: BaseException, again: bool) -> None:
        hooks = attempt.spec.hooks
        self._deadlines.stop(attempt)
        if again:
            await self._call(hooks.on_retry, attempt, error)
            return
        if not isinstance(error, JobCancelled):
            await self._call(hooks.on_failure, attempt, error)
        await self._call(hooks.on_complete, attempt, error)

    async def _call(self, hooks: Sequence[Callable[..., Any]], attempt: Attempt, value: Any) -> None:
        for hook in hooks:
            await self._call_one(hook, attempt, value)

    async def _call_one(self, hook: Callable[..., Any], attempt: Attempt, value: Any) -> None:
        """A hook that fails, or takes too long, is logged; it never changes how the job ends."""
        try:
            answer = hook(attempt, value)
            if asyncio.iscoroutine(answer):
                async with asyncio.timeout(LAST_HOOK_S if attempt.timed_out or attempt.cancelled else HOOK_S):
                    await answer
        except BaseException as error:  # user code: its failure is its own, be it a SystemExit
            if isinstance(error, asyncio.CancelledError) and (
                attempt.cancelled or attempt.timed_out or self._giving_up
            ):
                raise
            log.exception("a hook of %s failed", attempt.job_id)

    # --- where the function runs

    async def _do(self, attempt: Attempt, task: TaskRun, payload: bytes) -> tuple[bytes, Any]:
        """-> (the value encoded, the value)."""
        if task.in_process:
            raw = await self._in_process(attempt, payload)
            return raw, task.spec.arguments.decode_result(raw) if task.hooked else None
        args, kwargs = task.decode(payload)
        if task.is_async:
            value = await task.function(*args, **kwargs)
        else:
            value = await self._in_thread(attempt, partial(task.function, *args, **kwargs))
        return b"null" if value is None else task.encode_result(value), value

    async def _in_process(self, attempt: Attempt, payload: bytes) -> bytes:
        if self._pool is None:
            raise RuntimeError("this worker has no pool processes")
        self._meter(attempt).elsewhere = True
        place = await self._place(attempt)
        try:
            return await self._pool.run(attempt, payload, partial(self._deadlines.start, attempt))
        finally:
            place.leave()

    async def _in_thread(self, attempt: Attempt, function: Callable[[], Any]) -> Any:
        place = await self._place(attempt)
        work: asyncio.Future[Any] | None = None
        try:
            work = self._threads.run(
                partial(contextvars.copy_context().run, partial(self._meter(attempt).in_thread, function))
            )
            self._deadlines.start(attempt)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                if not work.done():
                    # a thread can't be stopped: the job is recorded as ended, the thread gets its grace, then the process goes
                    reason = "timeout" if attempt.timed_out else "cancelled"
                    stuck = self._loop.call_later(GRACE_S, self._stuck, attempt.job_id, reason)
                    self._lingering.begin(attempt)
                    work.add_done_callback(partial(self._over_at_last, attempt, stuck))
                raise
        finally:
            work = None  # it holds the error, the error this frame, and the frame what the job held
            place.leave()

    def _meter(self, attempt: Attempt) -> Meter:
        if attempt.meter is None:  # in its first step
            attempt.meter = Meter(self._cpu_clock)
        return attempt.meter

    def _over_at_last(self, attempt: Attempt, stuck: asyncio.TimerHandle, work: asyncio.Future[Any]) -> None:
        """Its end, whatever it is, comes too late to be recorded."""
        stuck.cancel()
        if not work.cancelled():
            work.exception()
        self._lingering.end(attempt)

    async def _place(self, attempt: Attempt) -> _Place:
        """A place in the pool, where it is smaller than the concurrency; its timeout doesn't count meanwhile."""
        self._deadlines.stop(attempt)
        place = _Place(self._permits)
        if self._permits is None:
            return place
        try:
            await self._permits.come_back(place, at_once=False)
        except BaseException:
            place.leave()
            raise
        if attempt.release is not None and attempt.retake is not None:
            attempt.release = partial(place.step_out, attempt.release)
            attempt.retake = partial(place.step_in, attempt.retake)
        return place


class _Place:
    """One attempt's permit, given up together with its slot while it waits for another job."""

    def __init__(self, permits: Turns[_Place] | None) -> None:
        self._permits = permits
        self.slot = Slot.WAITING

    def leave(self) -> None:
        self._move(Event.END)

    def step_out(self, release: Callable[[], None]) -> None:
        self._move(Event.WAIT)
        release()

    async def step_in(self, retake: Callable[[bool], Awaitable[None]], at_once: bool) -> None:
        await retake(at_once)
        if self._permits is not None:
            await self._permits.come_back(self, at_once=at_once)

    def _move(self, event: Event) -> None:
        if self._permits is not None:
            self._permits.slots.move(self, event)


def _nothing_else(place: _Place, before: Slot, after: Slot) -> None:
    """A permit has no cell on the scoreboard."""
