"""Runs attempts: at most `concurrency` at a time, in runners that live long and take one job after another.

The first step of a job runs right in its runner, so a job that never waits costs no task and no turn of the loop. Each job has a context of
its own. Only a job that does wait gets a place in the deadline wheel, and lets the next job start beside it. A runner is the asyncio task
that its jobs see; it ends with a job that kept a reference to it, so that what is done to the task of one job reaches no other.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import replace
from functools import partial
from sys import getrefcount
from typing import Any, cast
from weakref import getweakrefcount

from upnext.core import outcome as outcomes
from upnext.core.deadlines import Deadlines
from upnext.core.entry import Meta
from upnext.core.keys import Keys
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.core.retry import RetryIn
from upnext.core.spec import WorkerSpec
from upnext.engine import tracing
from upnext.engine.attempt import CURRENT, Attempt
from upnext.engine.calls.worker import Finish, PutBack
from upnext.engine.worker.failures import (
    JobCancelled,
    JobTimeout,
    PoolCrash,
    RemoteError,
    check_heeded,
    headline,
    meaning,
    outcome_of,
    told,
    verdict,
)
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.host import Host
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.middleware import GRACE_S, Around
from upnext.engine.worker.overrunning import Lingering
from upnext.engine.worker.slots import Event, Slot
from upnext.engine.worker.task_run import TaskRun, task_run
from upnext.engine.worker.turns import Turns

log = logging.getLogger("upnext.worker")

SLICE_S = 0.005
"""A runner whose jobs never wait gives the loop a turn so often."""
OVERTAKEN_S = 0.02
"""A job that was fetched so long ago is not overtaken by one of a limited task."""
EARLY_CANCEL_S = 10.0
"""A cancel that was heard before its job arrived here counts for so long."""


_CLEARED: dict[str, Any] = {"handed_back": False, "expires_ms": None, "suspect": False, "suspect_of": None}
"""What holds for an attempt and not for the next one of the same job. One that ended by itself has crashed nothing."""


def _as_it_is(value: Any) -> Any:
    """What has things around it comes out encoded."""
    return value


def _nothing() -> None:
    """Nothing waits for room."""


class _Rest:
    """Awaits the rest of a coroutine whose first step has run, each further step in the job's own context."""

    __slots__ = ("_context", "_coroutine", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, first: Any) -> None:
        self._coroutine, self._context, self._first = coroutine, context, first

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw = self._context.run, self._coroutine.send, self._coroutine.throw
        waited, self._first = self._first, None
        while True:
            try:
                value = yield waited
                waited = None  # a future that failed holds its error, and the error this frame
            except BaseException as error:  # noqa: BLE001 - a cancel or whatever the loop throws in: the job's to handle
                waited = None
                try:
                    waited = run(throw, error)
                except StopIteration as stop:
                    return stop.value
            else:
                try:
                    waited = run(send, value)
                except StopIteration as stop:
                    return stop.value


class Executor:
    """`hold` gives it fetched jobs; it runs them, reports to `finisher` and `host`."""

    def __init__(
        self,
        worker: WorkerSpec,
        membership: Membership,
        finisher: Finisher,
        host: Host,
        rng: random.Random,
        keys: Keys,
        lingering: Lingering,
        pool_setup: bytes | None = None,
    ) -> None:
        self._membership, self._finisher, self._host = membership, finisher, host
        self._rng, self._lingering = rng, lingering
        self._on_room: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self.tasks: Mapping[str, TaskRun] = {
            name: task_run(spec, index, worker.sync_executor) for index, (name, spec) in enumerate(worker.tasks.items())
        }
        self._around = Around(worker, keys, self, rng, lambda: not self.accepting, host.stuck, lingering, pool_setup)
        self.concurrency = worker.concurrency
        self.held: deque[tuple[Attempt, bytes, float]] = deque()
        """Fetched and unstarted: attempt, payload, when it was fetched (loop time)."""
        self.running: set[Attempt] = set()
        self._turns: Turns[Attempt] = Turns(worker.concurrency, self._slot_changed)
        self._slots = self._turns.slots
        self._cells = list(range(worker.concurrency - 1, -1, -1))
        self._idle: list[asyncio.Future[None]] = []
        self._waking = 0
        """Runners that were woken and have not looked yet."""
        self._runners: set[asyncio.Task[None]] = set()
        self._base = contextvars.copy_context()
        self._deadlines: Deadlines[int] = Deadlines()
        self._wheel: asyncio.TimerHandle | None = None
        self._wheel_at = 0.0
        self._wheel_jobs: dict[int, Attempt] = {}
        self._given_up: set[Attempt] = set()
        self._early_cancels: dict[str, float] = {}
        self._early_until = 0.0
        self._ended = asyncio.Event()
        self.finished = 0
        """Jobs ended here, for the tuning of prefetch."""
        self.accepting = True
        membership.watch(lost=self._registration_lost)

    def watch_room(self, on_room: Callable[[], None]) -> None:
        """Call `on_room` whenever this could take more."""
        self._on_room = on_room

    # --- taking jobs

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self.concurrency - self._slots.free

    @property
    def room(self) -> int:
        """Jobs that could start right now."""
        return self._slots.free - self._slots.wanted - len(self.held)

    @property
    def free(self) -> int:
        """Slots that nothing runs in; what is held may be about to."""
        return self._slots.free

    def hold(self, attempt: Attempt, payload: bytes, *, first: bool = False) -> None:
        """`first`: before what is held already (a limited task's job has a permit, which must not idle), save what waits for long."""
        now = self._loop.time()
        item = (attempt, payload, now)
        if first:
            self.held.insert(1 if self.held and now - self.held[0][2] > OVERTAKEN_S else 0, item)
        else:
            self.held.append(item)

    def wake_runner(self) -> None:
        """Starts held jobs: wakes one runner; a runner whose job waits wakes the next two."""
        if not self.held or self._slots.free <= self._waking or not self.accepting:
            return
        self._waking += 1
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return
        task = asyncio.create_task(self._runner(), name="upnext-runner", context=self._base.copy())
        self._runners.add(task)
        task.add_done_callback(self._runner_gone)

    def _runner_gone(self, task: asyncio.Task[None]) -> None:
        self._runners.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a runner failed: %r", error, exc_info=error)
        self.wake_runner()
        self._on_room()

    def unheld(self, which: Callable[[Attempt, float], bool]) -> list[Attempt]:
        """Takes the held jobs out for which `which(attempt, seconds held)` says so."""
        now = self._loop.time()
        out: list[Attempt] = []
        kept: deque[tuple[Attempt, bytes, float]] = deque()
        for item in self.held:
            if which(item[0], now - item[2]):
                out.append(item[0])
            else:
                kept.append(item)
        self.held = kept
        return out

    async def drained(self) -> None:
        """Returns when nothing runs."""
        while self.running:
            self._ended.clear()
            await self._ended.wait()

    async def aclose(self, grace_s: float = 1.0) -> None:
        """Cancels what still runs and waits for it, `grace_s` at most."""
        self.accepting = False
        for runner in self._runners:
            runner.cancel()
        if self._runners:
            await asyncio.wait(self._runners, timeout=grace_s)
        if self._wheel is not None:
            self._wheel.cancel()
        await self._around.aclose()

    def cancel(self, job_id: str) -> bool:
        """Asks a running job to end; asking again changes nothing. -> whether it runs here."""
        for attempt in self.running:
            if attempt.job_id == job_id:
                if not attempt.cancelled:
                    attempt.cancelled = True
                    self._stop(attempt)
                return True
        return False

    def cancel_later(self, job_id: str) -> None:
        """The job of this cancel isn't here, but it may be on its way: the bell can be faster than a fetch."""
        now = self._loop.time()
        if len(self._early_cancels) >= 1000:
            self._early_cancels = {job: until for job, until in self._early_cancels.items() if until > now}
        self._early_cancels[job_id] = self._early_until = now + EARLY_CANCEL_S

    def _cancelled_early(self, attempt: Attempt) -> bool:
        now = self._loop.time()
        if now > self._early_until:
            self._early_cancels.clear()
            return False
        return self._early_cancels.pop(attempt.job_id, 0.0) > now

    def _stop(self, attempt: Attempt) -> None:
        """Cancels its task, once; what doesn't heed that within the grace is given up."""
        if attempt.runner is not None and not (attempt.cancelled and attempt.timed_out):
            attempt.runner.cancel()
            self._loop.call_later(GRACE_S, self._check_ended, attempt, context=self._base.copy())

    def _registration_lost(self, reaped: bool) -> None:
        self.held.clear()
        if reaped:
            self.abandon()

    def abandon(self) -> None:
        """Cancels everything that runs and says nothing of its end: we were declared dead, others have these jobs."""
        for attempt in list(self.running):
            if attempt not in self._given_up:
                if attempt.cell >= 0:
                    self._host.parked(attempt.cell)
                self._given_up.add(attempt)
            if not attempt.cancelled:
                attempt.cancelled = True
                self._stop(attempt)

    # --- running

    async def _runner(self) -> None:
        self._waking -= 1
        me = cast("asyncio.Task[None]", asyncio.current_task())
        references = getrefcount(me), getweakrefcount(me)
        loop_time = self._loop.time
        slice_end = loop_time() + SLICE_S
        while self.accepting:
            while self.held and self._slots.free > 0:
                attempt, payload, _ = self.held.popleft()
                rest = self._begin(attempt, payload, me)
                if rest is not None:
                    await rest
                    slice_end = loop_time() + SLICE_S
                if me.cancelling() or (getrefcount(me), getweakrefcount(me)) != references:
                    return  # a cancel may still be on its way, or come from who keeps the task: never let it reach another job
                if loop_time() > slice_end:
                    self._on_room()
                    await asyncio.sleep(0)
                    slice_end = loop_time() + SLICE_S
            self._finisher.flush()
            self._on_room()
            if len(self._idle) >= self.concurrency:
                return
            future: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(future)
            try:
                await future
            finally:
                if not future.done():
                    self._idle.remove(future)
                elif not future.cancelled():
                    self._waking -= 1
            slice_end = loop_time() + SLICE_S

    def _begin(self, attempt: Attempt, payload: bytes, me: asyncio.Task[None]) -> Coroutine[Any, Any, None] | None:
        """Starts a job. -> None when that already ended it, else the rest of it, to be awaited."""
        task = self.tasks[attempt.spec.name]
        self._slots.free -= 1  # what `Slots.move` would do, without the detour: this is the hot path
        attempt.slot = Slot.HELD
        cell = attempt.cell = self._cells.pop()
        self._tell_started(cell, task.index, attempt)
        self.running.add(attempt)
        begun_ns = time.time_ns()
        attempt.started_at = begun_ns / 1e9
        attempt.runner = me
        attempt.loop = self._loop
        ok = False
        try:
            meta = attempt.meta
            if (
                meta is not None
                and meta.expires_ms is not None
                and meta.expires_ms < (attempt.started_at + self._membership.server_offset_s) * 1000
            ):
                late = ErrorInfo("Expired", "it did not start within its queue_ttl")
                self._tell_failed(attempt, late)
                self._end(attempt, self._failure(attempt, None, late, FailureReason.EXPIRED, cause="expired"))
                self._over(attempt, ok)
                return None
            if self._early_cancels and self._cancelled_early(attempt):
                self._end(attempt, self._failure(attempt, None, told(JobCancelled()), FailureReason.CANCELLED))
                self._over(attempt, ok)
                return None
            context = self._base.copy()
            context.run(CURRENT.set, attempt)
            if meta is not None and meta.trace is not None:
                context.run(tracing.attach, meta.trace)
            later = meta is not None and (meta.attempt > 1 or meta.crashes > 0 or meta.lost_hosts > 0)
            if task.plain and not later:
                args, kwargs = task.decode(payload)
                coroutine, encode = task.function(*args, **kwargs), task.encode_result
            else:
                attempt.release = partial(self._release, attempt)
                attempt.retake = partial(self._retake, attempt)
                coroutine, encode = self._around.run(attempt, task, payload, later=later), _as_it_is
            try:
                first = context.run(coroutine.send, None)
            except StopIteration as stop:
                value = stop.value
            else:
                return self._go_on(attempt, task, begun_ns, _Rest(coroutine, context, first), encode)
            self._end(attempt, self._success(attempt, begun_ns, b"null" if value is None else encode(value)))
            ok = True
        except BaseException as error:  # noqa: BLE001 - the boundary to user code: whatever it raises is the job's end
            self._failed(attempt, begun_ns, error)
        self._over(attempt, ok)
        return None

    async def _go_on(
        self, attempt: Attempt, task: TaskRun, begun_ns: int, rest: _Rest, encode: Callable[[Any], bytes]
    ) -> None:
        """The rest of a job that waits: others start beside it, and its timeout counts."""
        ok = False
        try:
            if attempt.release is None:  # not when its first step has put something before them
                attempt.release = partial(self._release, attempt)
                attempt.retake = partial(self._retake, attempt)
                if attempt.waits:
                    self._release(attempt)
            if task.is_async:
                self.start(attempt)
            self.wake_runner()
            self.wake_runner()
            value = await rest
            check_heeded(attempt)
            self._end(attempt, self._success(attempt, begun_ns, b"null" if value is None else encode(value)))
            ok = True
        except BaseException as error:  # the boundary to user code: whatever it raises is the job's end
            if isinstance(error, asyncio.CancelledError) and not self.accepting:
                raise  # this process is giving up: the job is not over, it goes to another worker
            self._failed(attempt, begun_ns, error)
        finally:
            self.stop(attempt)
            self._over(attempt, ok)

    def _over(self, attempt: Attempt, ok: bool) -> None:
        self.finished += 1
        self.running.discard(attempt)
        attempt.runner = None
        cell = attempt.cell
        given_up = bool(self._given_up) and attempt in self._given_up
        if given_up:
            self._given_up.discard(attempt)
            self._lingering.end(attempt)
        elif cell >= 0:
            self._host.ended(cell, ok)
        else:
            self._host.ended_parked(*self._entry_of(attempt), ok)
        if cell >= 0:  # as in `_begin`
            attempt.slot = Slot.ENDED
            self._cells.append(cell)
            self._slots.free += 1
            self._slots.settle()
        else:
            self._slots.move(attempt, Event.END)
        self._ended.set()

    def _tell_started(self, cell: int, index: int, attempt: Attempt) -> None:
        entry_ms, _, entry_seq = attempt.entry_id.partition(b"-")
        ms, seq, lane = int(entry_ms), int(entry_seq), ord(attempt.lane)
        if attempt.meta is None or attempt.meta.job_id is None:
            self._host.started(cell, index, lane, ms, seq, lane, ms, seq)
        else:
            tail = attempt.meta.job_id.rpartition(":")[2]
            born_ms, _, born_seq = tail[1:].partition("-")
            self._host.started(cell, index, lane, ms, seq, ord(tail[0]), int(born_ms), int(born_seq))

    def _entry_of(self, attempt: Attempt) -> tuple[int, int, int]:
        """-> (index of its task, ms, seq), as the host was told when it started."""
        ms, _, seq = attempt.entry_id.partition(b"-")
        return self.tasks[attempt.spec.name].index, int(ms), int(seq)

    # --- slots: a job that waits for another job gives its slot back

    def _release(self, attempt: Attempt) -> None:
        before = attempt.slot
        self._slots.move(attempt, Event.WAIT)
        if attempt.slot is not before:
            self.wake_runner()
            self._on_room()

    async def _retake(self, attempt: Attempt, at_once: bool) -> None:
        await self._turns.come_back(attempt, at_once=at_once)

    def _slot_changed(self, attempt: Attempt, before: Slot, after: Slot) -> None:
        """The cell of the scoreboard goes and comes with the slot; of what was given up the host knows the end already."""
        hidden = attempt in self._given_up
        if before is Slot.HELD:
            if not hidden:
                self._host.parked(attempt.cell)
            self._cells.append(attempt.cell)
            attempt.cell = -1
        elif after is Slot.HELD:
            attempt.cell = self._cells.pop()
            if not hidden:
                self._tell_started(attempt.cell, self.tasks[attempt.spec.name].index, attempt)

    # --- deadlines

    def start(self, attempt: Attempt) -> None:
        """The attempt's timeout counts from now on."""
        timeout_s = attempt.spec.options.timeout_s
        if timeout_s is not None and not attempt.timed_out:
            self._wheel_jobs[id(attempt)] = attempt
            self._deadlines.add(id(attempt), self._loop.time() + timeout_s)
            self._wind()

    def stop(self, attempt: Attempt) -> None:
        """It doesn't count any more."""
        if self._wheel_jobs.pop(id(attempt), None) is not None:
            self._deadlines.discard(id(attempt))

    def _wind(self) -> None:
        at = self._deadlines.next_at()
        if at is None or (self._wheel is not None and self._wheel_at <= at):
            return
        if self._wheel is not None:
            self._wheel.cancel()
        self._wheel_at = at
        self._wheel = self._loop.call_at(at, self._turn_wheel, context=self._base.copy())

    def _turn_wheel(self) -> None:
        self._wheel = None
        for key in self._deadlines.expired(self._loop.time()):
            attempt = self._wheel_jobs.pop(key, None)
            if attempt is not None and attempt.runner is not None and not attempt.cancelled:
                attempt.timed_out = True
                self._stop(attempt)
        self._wind()

    def _check_ended(self, attempt: Attempt) -> None:
        """After the grace: an attempt that still runs is recorded as ended, and this process is to be replaced. Its slot stays taken."""
        if attempt not in self.running or attempt.runner is None or not self.accepting:
            return
        reason = "timeout" if attempt.timed_out else "cancelled"
        self._lingering.begin(attempt)
        self._failed(attempt, int(attempt.started_at * 1e9), asyncio.CancelledError())
        self._given_up.add(attempt)
        self.running.discard(attempt)
        if attempt.cell >= 0:
            self._host.ended(attempt.cell, False)
        else:
            self._host.ended_parked(*self._entry_of(attempt), False)
        self._host.stuck(attempt.job_id, reason)
        self._ended.set()

    # --- ends

    def _success(self, attempt: Attempt, begun_ns: int, value: bytes) -> Outcome | bytes:
        if attempt.meta is None:
            # what `outcome.encode` would say, without the detour: this is the hot path
            tail = b'"b":%d,"f":%d,"w":"%s"}' % (
                begun_ns // 1_000_000,
                time.time_ns() // 1_000_000,
                self._membership.consumer.encode(),
            )
            return b'{"s":"done",' + tail if value == b"null" else b'{"s":"done","v":' + value + b"," + tail
        return outcome_of(attempt, JobStatus.DONE, self._membership.consumer, begun_ns, value=value)

    def _failure(
        self,
        attempt: Attempt,
        begun_ns: int | None,
        error: ErrorInfo,
        reason: FailureReason,
        *,
        cause: str | None = None,
    ) -> Outcome:
        """begun_ns: None for a job that never started."""
        status = JobStatus.CANCELLED if reason is FailureReason.CANCELLED else JobStatus.FAILED
        return outcome_of(attempt, status, self._membership.consumer, begun_ns, error=error, reason=reason, cause=cause)

    def _end(self, attempt: Attempt, outcome: Outcome | bytes, *, bury: bool = False) -> None:
        if self._given_up and attempt in self._given_up:
            return  # recorded already
        if isinstance(outcome, bytes):
            status, raw = JobStatus.DONE, outcome
        else:
            status, raw = outcome.status, outcomes.encode(outcome)
        job = Finish(attempt.spec.name, attempt.lane, attempt.entry_id, status, raw, attempt.meta, bury)
        if status is JobStatus.DONE:
            job.cache = attempt.cached
        self._finisher.finish(job)

    def _failed(self, attempt: Attempt, begun_ns: int, error: BaseException) -> None:
        if attempt in self._given_up:
            return
        error = meaning(attempt, error)
        if isinstance(error, JobCancelled):
            self._end(attempt, self._failure(attempt, begun_ns, told(error), FailureReason.CANCELLED))
            return
        said = told(error)
        self._tell_failed(attempt, said)
        if isinstance(error, PoolCrash):
            self._crashed(attempt, begun_ns, error)
            return
        if isinstance(error, RemoteError):
            decision = None if error.delay_s is None else RetryIn(error.delay_s)
        else:
            decision = attempt.verdict or verdict(attempt, error, self._rng)
        if isinstance(decision, RetryIn):
            log.info(
                "%s failed (attempt %d of %d), again in %.1f s: %s",
                attempt.job_id, attempt.attempt, attempt.max_attempts, decision.delay_s, said,
            )  # fmt: skip
            self._put_back(attempt, decision.delay_s, attempt=attempt.attempt + 1)
            return
        reason = FailureReason.TIMEOUT if isinstance(error, JobTimeout) else FailureReason.ERROR
        log.warning(
            "%s failed for good (attempt %d of %d): %s",
            attempt.job_id, attempt.attempt, attempt.max_attempts, said,
        )  # fmt: skip
        self._end(attempt, self._failure(attempt, begun_ns, said, reason), bury=True)

    def _tell_failed(self, attempt: Attempt, error: ErrorInfo) -> None:
        self._host.failed(attempt.job_id, attempt.spec.name, headline(error))

    def _crashed(self, attempt: Attempt, begun_ns: int, crash: PoolCrash) -> None:
        """Its pool process died: a crash of this job and no other. As any crash it is no attempt; at max_crashes the job is buried."""
        crashes = attempt.crashes + 1
        if crashes < attempt.spec.options.max_crashes:
            log.error("%s crashed its pool process (%s), crash %d: it runs again", attempt.job_id, crash.cause, crashes)
            self._put_back(attempt, 0.0, crashes=crashes, cause=crash.cause)
            return
        log.error("%s is buried after %d crashes, the last: %s", attempt.job_id, crashes, crash.cause)
        attempt.meta = replace(attempt.meta or Meta(), crashes=crashes, cause=crash.cause)
        error = ErrorInfo("WorkerCrash", f"buried after {crashes} worker crashes, the last: {crash.cause}")
        outcome = outcome_of(
            attempt,
            JobStatus.DEAD,
            self._membership.consumer,
            begun_ns,
            error=error,
            reason=FailureReason.CRASH,
            cause=crash.cause,
        )
        self._end(attempt, outcome, bury=True)

    def _put_back(self, attempt: Attempt, delay_s: float, /, **changes: Any) -> None:
        meta = replace(attempt.meta or Meta(), job_id=attempt.job_id, lane=None, **(_CLEARED | changes))
        delay_ms = max(0, round(delay_s * 1000))
        home = attempt.home_lane
        self._finisher.put_back(
            PutBack(attempt.spec.name, attempt.lane, attempt.entry_id, attempt.job_id, home, meta, delay_ms)
        )
