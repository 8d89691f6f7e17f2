"""Runs attempts: at most `concurrency` at a time, in runners that live long and take one job after another.

The first step of a job runs right in its runner, so a job that never waits costs no task and no turn of the loop. Each job has a context of
its own. Only a job that does wait gets a place in the deadline wheel, and lets the next job start beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from upnext.core import outcome as outcomes
from upnext.core.deadlines import Deadlines
from upnext.core.entry import Meta
from upnext.core.outcome import ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.core.retry import RetryIn, decide
from upnext.core.spec import TaskKind, TaskSpec, WorkerSpec
from upnext.engine.attempt import CURRENT, Attempt
from upnext.engine.calls.holding import Finish, PutBack
from upnext.engine.finisher import Finisher
from upnext.engine.host import Host
from upnext.errors import EncodingError, InvalidArgumentsError, QueueError

log = logging.getLogger("upnext.worker")

SLICE_S = 0.005
"""A runner whose jobs never wait gives the loop a turn so often."""
TRACEBACK_CAP = 16_000
GRACE_S = 5.0
"""What a job gets to end after it was cancelled or timed out, before its process is to be replaced."""


class JobTimeout(TimeoutError):
    """The job ran longer than its timeout."""


class JobCancelled(Exception):  # noqa: N818 - an end, not an error
    """Somebody cancelled the job."""


@dataclass(slots=True)
class TaskRun:
    """A task as the executor sees it: everything that can be known before the first job."""

    spec: TaskSpec
    index: int
    decode: Callable[[bytes], tuple[tuple[Any, ...], dict[str, Any]]]
    encode_result: Callable[[Any], bytes]
    function: Callable[..., Any]
    is_async: bool
    timeout_s: float | None
    hooked: bool


def _task_run(spec: TaskSpec, index: int) -> TaskRun:
    lenient = getattr(spec.arguments, "decode_event", None) if spec.kind is TaskKind.EVENT else None
    return TaskRun(
        spec,
        index,
        lenient or spec.arguments.decode,
        spec.arguments.encode_result,
        spec.function,
        spec.is_async,
        spec.options.timeout_s,
        spec.hooks.any(),
    )


class _Rest:
    """Awaits the rest of a coroutine whose first step has run, each further step in the job's own context."""

    __slots__ = ("_context", "_coroutine", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, first: Any) -> None:
        self._coroutine, self._context, self._first = coroutine, context, first

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw = self._context.run, self._coroutine.send, self._coroutine.throw
        waited = self._first
        while True:
            try:
                value = yield waited
            except BaseException as error:  # noqa: BLE001 - a cancel or whatever the loop throws in: the job's to handle
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
    """`hold` gives it fetched jobs; it runs them, reports to `finisher` and `host`. `on_room` is called when it could take more."""

    def __init__(
        self,
        worker: WorkerSpec,
        consumer: Callable[[], str],
        finisher: Finisher,
        host: Host,
        on_room: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._worker, self._consumer, self._finisher, self._host = worker, consumer, finisher, host
        self._on_room, self._rng = on_room, rng
        self._loop = asyncio.get_running_loop()
        self.tasks: Mapping[str, TaskRun] = {name: _task_run(spec, i) for i, (name, spec) in enumerate(worker.tasks.items())}
        self.concurrency = worker.concurrency
        self.held: deque[tuple[Attempt, bytes, float]] = deque()
        """Fetched and unstarted: attempt, payload, when it was fetched (loop time)."""
        self.running: set[Attempt] = set()
        self._slots = worker.concurrency
        self._cells = list(range(worker.concurrency - 1, -1, -1))
        self._returning: deque[asyncio.Future[None]] = deque()
        self._retaking: set[Attempt] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._runners: set[asyncio.Task[None]] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._base = contextvars.copy_context()
        self._deadlines: Deadlines = Deadlines()
        self._wheel: asyncio.TimerHandle | None = None
        self._wheel_at = 0.0
        self._wheel_jobs: dict[int, Attempt] = {}
        self._ended = asyncio.Event()
        self._when_idle: Callable[[], None] | None = None
        self.finished = 0
        """Jobs ended here, for the tuning of prefetch."""
        self.server_offset_s = 0.0
        """Server's clock less ours."""
        self.accepting = True

    # --- taking jobs

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self.concurrency - self._slots

    @property
    def room(self) -> int:
        """Jobs that could start right now."""
        return self._slots - len(self._returning) - len(self.held)

    def hold(self, attempt: Attempt, payload: bytes) -> None:
        self.held.append((attempt, payload, self._loop.time()))

    def go(self) -> None:
        """Starts held jobs: wakes one runner; a runner whose job waits wakes the next."""
        if not self.held or self._slots <= 0:
            return
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return
        task = asyncio.create_task(self._runner(), name="upnext-runner")
        self._runners.add(task)
        task.add_done_callback(self._runner_gone)

    def _runner_gone(self, task: asyncio.Task[None]) -> None:
        self._runners.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a runner failed: %r", error, exc_info=error)
        self.go()

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

    def when_idle(self, then: Callable[[], None]) -> None:
        """Calls `then` once nothing is held and nothing runs."""
        self._when_idle = then

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
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def cancel(self, job_id: str) -> bool:
        """Asks a running job to end. -> whether it runs here."""
        for attempt in self.running:
            if attempt.job_id == job_id:
                attempt.cancelled = True
                if attempt.runner is not None:
                    attempt.runner.cancel()
                return True
        return False

    def abandon(self) -> None:
        """Cancels everything that runs: we were declared dead, others have these jobs."""
        for attempt in self.running:
            attempt.cancelled = True
            if attempt.runner is not None:
                attempt.runner.cancel()

    # --- running

    async def _runner(self) -> None:
        me = cast("asyncio.Task[None]", asyncio.current_task())
        loop_time = self._loop.time
        slice_end = loop_time() + SLICE_S
        while self.accepting:
            while self.held and self._slots > 0:
                attempt, payload, _ = self.held.popleft()
                rest = self._begin(attempt, payload, me)
                if rest is not None:
                    await rest
                    if me.cancelling():
                        return  # a cancel may still be on its way to the next await: never let it reach another job
                    slice_end = loop_time() + SLICE_S
                elif loop_time() > slice_end:
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
            slice_end = loop_time() + SLICE_S

    def _begin(self, attempt: Attempt, payload: bytes, me: asyncio.Task[None]) -> Coroutine[Any, Any, None] | None:
        """Starts a job. -> None when that already ended it, else the rest of it, to be awaited."""
        task = self.tasks[attempt.spec.name]
        self._slots -= 1
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
            if meta is not None and meta.expires_ms is not None and meta.expires_ms < (attempt.started_at + self.server_offset_s) * 1000:
                message = "it did not start within its queue_ttl"
                self._end(attempt, self._failure(attempt, begun_ns, "Expired", message, FailureReason.EXPIRED))
                self._over(attempt, ok)
                return None
            args, kwargs = task.decode(payload)
            context = self._base.copy()
            context.run(CURRENT.set, attempt)
            later = meta is not None and (meta.attempt > 1 or meta.crashes > 0 or meta.lost_hosts > 0)
            if task.is_async and not task.hooked and not later:
                coroutine = task.function(*args, **kwargs)
            else:
                coroutine = self._whole(attempt, task, args, kwargs, later=later)
            try:
                first = context.run(coroutine.send, None)
            except StopIteration as stop:
                value = stop.value
            else:
                return self._go_on(attempt, task, begun_ns, _Rest(coroutine, context, first))
            self._end(attempt, self._success(attempt, begun_ns, b"null" if value is None else task.encode_result(value)))
            ok = True
        except BaseException as error:  # noqa: BLE001 - the boundary to user code: whatever it raises is the job's end
            self._failed(attempt, begun_ns, error)
        self._over(attempt, ok)
        return None

    async def _go_on(self, attempt: Attempt, task: TaskRun, begun_ns: int, rest: _Rest) -> None:
        """The rest of a job that waits: others start beside it, and its timeout counts."""
        ok = False
        try:
            attempt.release = partial(self._release, attempt)
            attempt.retake = partial(self._retake, attempt, task)
            if task.timeout_s is not None:
                key = id(attempt)
                self._wheel_jobs[key] = attempt
                self._deadlines.add(key, self._loop.time() + task.timeout_s)
                self._wind()
            self.go()
            value = await rest
            self._end(attempt, self._success(attempt, begun_ns, b"null" if value is None else task.encode_result(value)))
            ok = True
        except BaseException as error:  # noqa: BLE001 - the boundary to user code: whatever it raises is the job's end
            if isinstance(error, asyncio.CancelledError) and not self.accepting:
                raise  # this process is giving up: the job is not over, it goes to another worker
            self._failed(attempt, begun_ns, error)
        finally:
            if self._wheel_jobs.pop(id(attempt), None) is not None:
                self._deadlines.discard(id(attempt))
            self._over(attempt, ok)

    def _over(self, attempt: Attempt, ok: bool) -> None:
        self.finished += 1
        self.running.discard(attempt)
        attempt.runner = None
        cell = attempt.cell
        if cell >= 0:
            self._host.ended(cell, ok)
            self._cells.append(cell)
            self._slots += 1
            if self._returning:
                self._wake_returning()
        self._ended.set()
        if self._when_idle is not None and not self.running and not self.held:
            then, self._when_idle = self._when_idle, None
            then()

    def _tell_started(self, cell: int, index: int, attempt: Attempt) -> None:
        entry_ms, _, entry_seq = attempt.entry_id.partition(b"-")
        ms, seq, lane = int(entry_ms), int(entry_seq), ord(attempt.lane)
        if attempt.meta is None or attempt.meta.job_id is None:
            self._host.started(cell, index, lane, ms, seq, lane, ms, seq)
        else:
            tail = attempt.meta.job_id.rpartition(":")[2]
            born_ms, _, born_seq = tail[1:].partition("-")
            self._host.started(cell, index, lane, ms, seq, ord(tail[0]), int(born_ms), int(born_seq))

    async def _whole(self, attempt: Attempt, task: TaskRun, args: tuple[Any, ...], kwargs: dict[str, Any], *, later: bool) -> Any:
        """A job with more around it: hooks, a thread for a plain function, the checkpoint of an earlier attempt."""
        hooks = attempt.spec.hooks
        if later:
            try:
                attempt.state = await attempt.broker.read_progress(attempt.job_id) or None
            except QueueError as error:
                log.warning("the checkpoint of %s can't be read: %s", attempt.job_id, error)
        if hooks.on_start is not None:
            await _call_hook(hooks.on_start, attempt, None)
        try:
            if task.is_async:
                value = await task.function(*args, **kwargs)
            else:
                value = await self._in_thread(attempt, partial(task.function, *args, **kwargs))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            again = isinstance(decide(attempt.spec.options, attempt.attempt, error, self._rng), RetryIn)
            await _call_hook(hooks.on_retry if again else hooks.on_failure, attempt, error)
            if not again:
                await _call_hook(hooks.on_complete, attempt, error)
            raise
        await _call_hook(hooks.on_success, attempt, value)
        await _call_hook(hooks.on_complete, attempt, value)
        return value

    async def _in_thread(self, attempt: Attempt, function: Callable[[], Any]) -> Any:
        if self._threads is None:
            size = self._worker.sync_pool_size or self.concurrency
            self._threads = ThreadPoolExecutor(size, thread_name_prefix="upnext-sync")
        work = self._loop.run_in_executor(self._threads, contextvars.copy_context().run, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.cancel() and not work.done():
                # a thread can't be stopped: the job is recorded as ended, the thread gets its grace, then the process goes
                reason = "timeout" if attempt.timed_out else "cancelled"
                self._loop.call_later(GRACE_S, self._check_thread, work, attempt.job_id, reason)
                work.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def _check_thread(self, work: asyncio.Future[Any], job_id: str, reason: str) -> None:
        if not work.done():
            self._host.stuck(job_id, reason)

    # --- slots: a job that waits for another job gives its slot back

    def _release(self, attempt: Attempt) -> None:
        if attempt.cell < 0:
            return  # released already, or just about to be retaken
        self._host.parked(attempt.cell)
        self._cells.append(attempt.cell)
        attempt.cell = -1
        self._give_slot()
        self.go()
        self._on_room()

    async def _retake(self, attempt: Attempt, task: TaskRun) -> None:
        if attempt.cell >= 0 or attempt in self._retaking or attempt not in self.running:
            return
        if self._slots <= 0 or self._returning:
            self._retaking.add(attempt)
            turn: asyncio.Future[None] = self._loop.create_future()
            self._returning.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_slot()
                elif turn in self._returning:
                    self._returning.remove(turn)
                raise
            finally:
                self._retaking.discard(attempt)
            if attempt not in self.running:  # it ended meanwhile: this was a wait that it had forgotten
                self._give_slot()
                return
        else:
            self._slots -= 1
        attempt.cell = self._cells.pop()
        self._tell_started(attempt.cell, task.index, attempt)

    def _give_slot(self) -> None:
        self._slots += 1
        self._wake_returning()

    def _wake_returning(self) -> None:
        while self._returning and self._slots > 0:
            turn = self._returning.popleft()
            if not turn.done():
                self._slots -= 1
                turn.set_result(None)

    # --- deadlines

    def _wind(self) -> None:
        at = self._deadlines.next_at()
        if at is None or (self._wheel is not None and self._wheel_at <= at):
            return
        if self._wheel is not None:
            self._wheel.cancel()
        self._wheel_at = at
        self._wheel = self._loop.call_at(at, self._turn_wheel)

    def _turn_wheel(self) -> None:
        self._wheel = None
        for key in self._deadlines.expired(self._loop.time()):
            attempt = self._wheel_jobs.pop(key, None)
            if attempt is not None and attempt.runner is not None:
                attempt.timed_out = True
                attempt.runner.cancel()
                self._loop.call_later(GRACE_S, self._check_ended, attempt)
        self._wind()

    def _check_ended(self, attempt: Attempt) -> None:
        if attempt in self.running:
            self._host.stuck(attempt.job_id, "timeout" if attempt.timed_out else "cancelled")

    # --- ends

    def _success(self, attempt: Attempt, begun_ns: int, value: bytes) -> Outcome | bytes:
        if attempt.meta is None:
            # what `outcome.encode` would say, without the detour: this is the hot path
            tail = b'"b":%d,"f":%d,"w":"%s"}' % (begun_ns // 1_000_000, time.time_ns() // 1_000_000, self._consumer().encode())
            return b'{"s":"done",' + tail if value == b"null" else b'{"s":"done","v":' + value + b"," + tail
        return self._outcome(attempt, begun_ns, JobStatus.DONE, value=value)

    def _outcome(self, attempt: Attempt, begun_ns: int, status: JobStatus, **more: Any) -> Outcome:
        return Outcome(
            status=status,
            attempt=attempt.attempt,
            crashes=attempt.crashes,
            begun_ms=begun_ns // 1_000_000,
            finished_ms=time.time_ns() // 1_000_000,
            worker=self._consumer(),
            parent_id=attempt.parent_id,
            root_id=attempt.root_id,
            **more,
        )

    def _failure(self, attempt: Attempt, begun_ns: int, kind: str, message: str, reason: FailureReason, trace: str = "") -> Outcome:
        status = JobStatus.CANCELLED if reason is FailureReason.CANCELLED else JobStatus.FAILED
        return self._outcome(attempt, begun_ns, status, error=ErrorInfo(kind, message, trace), reason=reason)

    def _end(self, attempt: Attempt, outcome: Outcome | bytes, *, bury: bool = False) -> None:
        if isinstance(outcome, bytes):
            status, raw = JobStatus.DONE, outcome
        else:
            status, raw = outcome.status, outcomes.encode(outcome)
        self._finisher.finish(Finish(attempt.spec.name, attempt.lane, attempt.entry_id, status, raw, attempt.meta, bury))

    def _failed(self, attempt: Attempt, begun_ns: int, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            error = RuntimeError(f"the task raised {type(error).__name__}: a task can't end its worker")
        if isinstance(error, asyncio.CancelledError):
            if attempt.timed_out:
                error = JobTimeout(f"ran longer than its timeout of {attempt.spec.options.timeout_s:g} s")
            elif attempt.cancelled:
                self._end(attempt, self._failure(attempt, begun_ns, "Cancelled", "cancelled", FailureReason.CANCELLED))
                return
            else:
                error = RuntimeError("the task raised CancelledError, though nobody cancelled it")
        reason = FailureReason.TIMEOUT if isinstance(error, JobTimeout) else FailureReason.ERROR
        decision = None if _hopeless(error) else decide(attempt.spec.options, attempt.attempt, error, self._rng)
        if isinstance(decision, RetryIn):
            meta = replace(attempt.meta) if attempt.meta is not None else Meta()
            meta.job_id = attempt.job_id
            meta.attempt = attempt.attempt + 1
            meta.handed_back = False
            home = attempt.home_lane
            meta.lane = None
            log.info("%s failed (attempt %d of %d), again in %.1f s: %r", attempt.job_id, attempt.attempt, attempt.max_attempts, decision.delay_s, error)
            self._finisher.put_back(
                PutBack(attempt.spec.name, attempt.lane, attempt.entry_id, attempt.job_id, home, meta, max(0, round(decision.delay_s * 1000)))
            )
            return
        trace = "" if isinstance(error, JobTimeout) else _trace(error)
        name = "TimeoutError" if isinstance(error, JobTimeout) else _type_name(error)
        log.warning("%s failed for good (attempt %d of %d): %s: %s", attempt.job_id, attempt.attempt, attempt.max_attempts, name, error)
        self._end(attempt, self._failure(attempt, begun_ns, name, str(error), reason, trace), bury=True)


def cancelled_end(job: PutBack, consumer: str) -> Finish:
    """The end of a job whose cancel was asked for while its attempt failed."""
    outcome = Outcome(
        status=JobStatus.CANCELLED,
        attempt=job.meta.attempt - 1,
        crashes=job.meta.crashes,
        finished_ms=time.time_ns() // 1_000_000,
        worker=consumer,
        parent_id=job.meta.parent_id,
        root_id=job.meta.root_id,
        error=ErrorInfo("Cancelled", "cancelled"),
        reason=FailureReason.CANCELLED,
    )
    return Finish(job.task, job.lane, job.entry_id, JobStatus.CANCELLED, outcomes.encode(outcome), job.meta)


def _hopeless(error: BaseException) -> bool:
    """Errors that no further attempt can mend: the arguments or the result don't fit the code."""
    return isinstance(error, InvalidArgumentsError | EncodingError)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"


def _trace(error: BaseException) -> str:
    """The traceback from the user's code on, bounded: the frames of the runner say nothing to anybody."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in (__name__, "concurrent.futures.thread"):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    return text if len(text) <= TRACEBACK_CAP else f"{text[: TRACEBACK_CAP // 2]}\n…\n{text[-TRACEBACK_CAP // 2 :]}"


async def _call_hook(hook: Callable[..., Any] | None, attempt: Attempt, value: Any) -> None:
    """A hook that fails is logged; it never changes how the job ends."""
    if hook is None:
        return
    try:
        answer = hook(attempt, value)
        if asyncio.iscoroutine(answer):
            await answer
    except Exception:  # user code: its failure is its own
        log.exception("a hook of %s failed", attempt.job_id)
