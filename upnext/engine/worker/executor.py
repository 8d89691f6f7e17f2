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
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from sys import getrefcount
from typing import Any, cast
from weakref import getweakrefcount

from upnext.core.keys import Keys
from upnext.core.spec import WorkerSpec
from upnext.core.suspects import SPARE_CELLS
from upnext.engine import tracing
from upnext.engine.attempt import CURRENT, Attempt
from upnext.engine.cost import CpuClock, Meter
from upnext.engine.worker.continuation import Continuation
from upnext.engine.worker.deadlines import AttemptDeadlines
from upnext.engine.worker.early_cancels import EarlyCancels
from upnext.engine.worker.failures import check_heeded
from upnext.engine.worker.finisher import Finisher
from upnext.engine.worker.host import Host
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.middleware import GRACE_S, Around
from upnext.engine.worker.overrunning import Lingering
from upnext.engine.worker.results import Results
from upnext.engine.worker.slots import Event, Slot
from upnext.engine.worker.task_run import TaskRun, task_run
from upnext.engine.worker.turns import Turns

log = logging.getLogger("upnext.worker")

SLICE_S = 0.005
"""A runner whose jobs never wait gives the loop a turn so often."""
OVERTAKEN_S = 0.02
"""A job that was fetched so long ago is not overtaken by one of a limited task."""


def _as_it_is(value: Any) -> Any:
    """Return what is encoded already."""
    return value


def _nothing() -> None:
    """Nothing waits for room."""


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
        self._lingering = lingering
        self._cpu_clock = CpuClock()
        self._results = Results(membership, finisher, host, rng, self._cpu_clock)
        self._on_room: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self.tasks: Mapping[str, TaskRun] = {
            name: task_run(spec, index, worker.sync_executor) for index, (name, spec) in enumerate(worker.tasks.items())
        }
        self.concurrency = worker.concurrency
        self.held: deque[tuple[Attempt, bytes, float]] = deque()
        """Fetched and unstarted: attempt, payload, when it was fetched (loop time)."""
        self.running: set[Attempt] = set()
        self._turns: Turns[Attempt] = Turns(worker.concurrency, self._slot_changed)
        self._slots = self._turns.slots
        self._cells = deque(range(worker.concurrency + SPARE_CELLS))  # the one that is free for longest comes first
        self._idle: list[asyncio.Future[None]] = []
        self._waking = 0
        """Runners that were woken and have not looked yet."""
        self._runners: set[asyncio.Task[None]] = set()
        self._base = contextvars.copy_context()
        self._deadlines = AttemptDeadlines(self._time_out, self._base)
        self._around = Around(worker, keys, self._deadlines, rng, host.stuck, lingering, pool_setup, self._cpu_clock)
        self._early_cancels = EarlyCancels()
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
        """Start held jobs: wake one runner; a runner whose job waits wakes the next two."""
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
        """Take the held jobs out for which `which(attempt, seconds held)` says so."""
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
        """Return when nothing runs."""
        while self.running:
            self._ended.clear()
            await self._ended.wait()

    async def aclose(self, grace_s: float = 1.0) -> None:
        """Cancel what still runs and wait for it, `grace_s` at most."""
        self.accepting = False
        self._around.give_up()
        for runner in self._runners:
            runner.cancel()
        if self._runners:
            await asyncio.wait(self._runners, timeout=grace_s)
        self._deadlines.close()
        await self._around.aclose()

    def cancel(self, job_id: str) -> bool:
        """Ask a running job to end; asking again changes nothing. -> whether it runs here."""
        for attempt in self.running:
            if attempt.job_id == job_id:
                if not attempt.cancelled:
                    attempt.cancelled = True
                    self._stop(attempt)
                return True
        return False

    def cancel_later(self, job_id: str) -> None:
        """Remember a cancel whose job isn't here: it may be on its way, as the wake-up can be faster than a fetch."""
        self._early_cancels.add(job_id, self._loop.time())

    def _stop(self, attempt: Attempt) -> None:
        """Cancel its task, once; what doesn't heed that within the grace is given up."""
        if attempt.runner is not None and not (attempt.cancelled and attempt.timed_out):
            attempt.runner.cancel()
            self._loop.call_later(GRACE_S, self._check_ended, attempt, context=self._base.copy())

    def _registration_lost(self, reaped: bool) -> None:
        self.held.clear()
        if reaped:
            self.abandon()

    def abandon(self) -> None:
        """Cancel everything that runs and record no end: this worker was declared dead, other workers have these jobs."""
        for attempt in list(self.running):
            if not attempt.given_up:
                if attempt.cell >= 0:
                    self._host.parked(attempt.cell)
                attempt.given_up = True
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
        self._cpu_clock.look()
        while self.accepting:
            while self.held and self._slots.free > 0:
                attempt, payload, _ = self.held.popleft()
                rest = self._start(attempt, payload, me)
                if rest is not None:
                    await rest
                    slice_end = loop_time() + SLICE_S
                    self._cpu_clock.look()
                if me.cancelling() or (getrefcount(me), getweakrefcount(me)) != references:
                    return  # a cancel may still be on its way, or come from who keeps the task: never let it reach another job
                if loop_time() > slice_end:
                    self._on_room()
                    await asyncio.sleep(0)
                    slice_end = loop_time() + SLICE_S
                    self._cpu_clock.look()
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
            self._cpu_clock.look()

    def _start(self, attempt: Attempt, payload: bytes, me: asyncio.Task[None]) -> Coroutine[Any, Any, None] | None:
        """Start a job. -> None when that already ended it, else the rest of it, to be awaited."""
        task = self.tasks[attempt.spec.name]
        self._slots.free -= 1  # what `Slots.move` would do, without the detour: this is the hot path
        attempt.slot = Slot.HELD
        cell = attempt.cell = self._cells.popleft()
        self._show_started(cell, task.index, attempt)
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
                self._results.expired(attempt)
                self._release(attempt, ok)
                return None
            if self._early_cancels.waiting and self._early_cancels.take(attempt.job_id, self._loop.time()):
                self._results.cancelled_before_start(attempt)
                self._release(attempt, ok)
                return None
            context = self._base.copy()
            context.run(CURRENT.set, attempt)
            if tracing.spans is not None or (meta is not None and meta.trace is not None):
                context.run(tracing.begin, attempt)
            later = meta is not None and attempt.later
            if task.plain and not later:
                args, kwargs = task.decode(payload)
                coroutine, encode = task.function(*args, **kwargs), task.encode_result
            else:
                attempt.release = partial(self._give_slot, attempt)
                attempt.retake = partial(self._take_slot, attempt)
                coroutine, encode = self._around.run(attempt, task, payload, later=later), _as_it_is
            try:
                first = context.run(coroutine.send, None)
            except StopIteration as stop:
                value = stop.value
            else:
                meter = attempt.meter = attempt.meter or Meter(self._cpu_clock)
                meter.step(begun_ns)
                return self._await_rest(attempt, task, begun_ns, Continuation(coroutine, context, first, meter), encode)
            self._results.done(attempt, begun_ns, b"null" if value is None else encode(value))
            ok = True
        except BaseException as error:  # noqa: BLE001 - the boundary to user code: whatever it raises is the job's end
            self._results.failed(attempt, begun_ns, error)
        self._release(attempt, ok)
        return None

    async def _await_rest(
        self, attempt: Attempt, task: TaskRun, begun_ns: int, rest: Continuation, encode: Callable[[Any], bytes]
    ) -> None:
        """Await the rest of a job that waits: other jobs start beside it, and its timeout counts."""
        ok = False
        try:
            if attempt.release is None:  # not when its first step has put something before them
                attempt.release = partial(self._give_slot, attempt)
                attempt.retake = partial(self._take_slot, attempt)
                if attempt.waits:
                    self._give_slot(attempt)
            if task.is_async:
                self._deadlines.start(attempt)
            self.wake_runner()
            self.wake_runner()
            value = await rest
            check_heeded(attempt)
            self._results.done(attempt, begun_ns, b"null" if value is None else encode(value))
            ok = True
        except BaseException as error:  # the boundary to user code: whatever it raises is the job's end
            if isinstance(error, asyncio.CancelledError) and not self.accepting:
                raise  # this process is giving up: the job is not over, it goes to another worker
            self._results.failed(attempt, begun_ns, error)
        finally:
            self._deadlines.stop(attempt)
            self._release(attempt, ok)

    def _release(self, attempt: Attempt, ok: bool) -> None:
        self.finished += 1
        self.running.discard(attempt)
        attempt.runner = None
        if attempt.span is not None:
            attempt.span.end()
        cell = attempt.cell
        if attempt.given_up:
            self._lingering.end(attempt)
        elif cell >= 0:
            self._host.ended(cell, ok)
        else:
            self._host.ended_parked(*self._entry_of(attempt), ok)
        if cell >= 0:  # as in `_start`
            attempt.slot = Slot.ENDED
            self._cells.append(cell)
            self._slots.free += 1
            self._slots.settle()
        else:
            self._slots.move(attempt, Event.END)
        self._ended.set()

    def _show_started(self, cell: int, index: int, attempt: Attempt) -> None:
        entry_ms, _, entry_seq = attempt.entry_id.partition(b"-")
        ms, seq, lane = int(entry_ms), int(entry_seq), ord(attempt.lane)
        if attempt.meta is None or attempt.meta.job_id is None:
            self._host.started(cell, index, lane, ms, seq, lane, ms, seq)
        else:
            tail = attempt.meta.job_id.rpartition(":")[2]
            born_ms, _, born_seq = tail[1:].partition("-")
            self._host.started(cell, index, lane, ms, seq, ord(tail[0]), int(born_ms), int(born_seq))

    def _entry_of(self, attempt: Attempt) -> tuple[int, int, int]:
        """-> (index of its task, ms, seq), as the host got them when it started."""
        ms, _, seq = attempt.entry_id.partition(b"-")
        return self.tasks[attempt.spec.name].index, int(ms), int(seq)

    # --- slots: a job that waits for another job gives its slot back

    def _give_slot(self, attempt: Attempt) -> None:
        before = attempt.slot
        self._slots.move(attempt, Event.WAIT)
        if attempt.slot is not before:
            self.wake_runner()
            self._on_room()

    async def _take_slot(self, attempt: Attempt, at_once: bool) -> None:
        await self._turns.come_back(attempt, at_once=at_once)

    def _slot_changed(self, attempt: Attempt, before: Slot, after: Slot) -> None:
        """Move the cell of the scoreboard with the slot; the host knows already that what was given up has ended."""
        hidden = attempt.given_up
        if before is Slot.HELD:
            if not hidden:
                self._host.parked(attempt.cell)
            self._cells.append(attempt.cell)
            attempt.cell = -1
        elif after is Slot.HELD:
            attempt.cell = self._cells.popleft()
            if not hidden:
                self._show_started(attempt.cell, self.tasks[attempt.spec.name].index, attempt)

    # --- stopping

    def _time_out(self, attempt: Attempt) -> None:
        if attempt.runner is not None and not attempt.cancelled:
            attempt.timed_out = True
            self._stop(attempt)

    def _check_ended(self, attempt: Attempt) -> None:
        """After the grace: record an attempt that still runs as ended, and ask for this process to be replaced. Its slot stays taken."""
        if attempt not in self.running or attempt.runner is None or not self.accepting:
            return
        reason = "timeout" if attempt.timed_out else "cancelled"
        self._lingering.begin(attempt)
        self._results.failed(attempt, int(attempt.started_at * 1e9), asyncio.CancelledError())
        attempt.given_up = True
        self.running.discard(attempt)
        if attempt.cell >= 0:
            self._host.ended(attempt.cell, False)
        else:
            self._host.ended_parked(*self._entry_of(attempt), False)
        self._host.stuck(attempt.job_id, reason)
        self._ended.set()
