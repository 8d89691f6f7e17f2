"""A model of the executor's slots: the real Executor and the real waits of the SDK, in virtual time, with a queue in memory.

A seed makes a plan: jobs that sleep, wait, nest, time out, are cancelled, swallow their cancel, and leave background work behind. What must
hold is counted beside the executor, by the jobs themselves:

- a job starts only while fewer than `concurrency` run; more run only when a wait ended by a timeout, a cancel or an error;
- when nothing is ready to happen, no job and no return waits while a slot is free, and `busy` is the number of jobs that run;
- a wait with a timeout ends at its time; everything ends; at the end every slot and every cell is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import upnext
from tests.support import virtual_time
from tests.support.fleet import task
from upnext import access
from upnext.core import outcome as outcomes
from upnext.core.keys import Keys
from upnext.core.outcome import Outcome
from upnext.core.spec import Hooks, WorkerSpec
from upnext.core.suspects import SPARE_CELLS
from upnext.engine.attempt import CURRENT, Attempt
from upnext.engine.calls.worker import Finish
from upnext.engine.worker.executor import Executor
from upnext.engine.worker.host import NoHost
from upnext.errors import TaskExecutionError

LATE_S = 0.001
"""So much later than its time may a timeout come, in virtual time."""
PRECISION_S = 0.05
"""Times in plans are multiples of this, so that many things happen at one moment."""

# --- plans


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Wait:
    """For a job of its own. `timeout_s` is the wait's, `around_s` that of an `asyncio.timeout` around it."""

    job: Plan
    timeout_s: float | None
    around_s: float | None


@dataclass(frozen=True)
class Gather:
    branches: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class First:
    branches: tuple[tuple[Step, ...], ...]
    timeout_s: float | None


@dataclass(frozen=True)
class Behind:
    """In a task of its own that nothing waits for; it may outlive its job."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Stubborn:
    """Does not end when it is cancelled, for so long."""

    seconds: float


@dataclass(frozen=True)
class Fail:
    pass


Step = Sleep | Wait | Gather | First | Behind | Stubborn | Fail


@dataclass(frozen=True)
class Plan:
    number: int
    steps: tuple[Step, ...]
    timeout_s: float | None
    """One of TIMEOUTS_S, each of which has a task."""
    hooked: bool
    cancelled_after_s: float | None
    """From its submission."""


TIMEOUTS_S = (None, 0.5, 1.0, 2.0)


class Planner:
    def __init__(self, rng: random.Random) -> None:
        self._rng, self._number = rng, 0

    def _seconds(self, most: int = 12) -> float:
        return self._rng.randrange(most) * PRECISION_S

    def _perhaps(self, chance: float, most: int = 12) -> float | None:
        return self._seconds(most) if self._rng.random() < chance else None

    def plan(self, depth: int) -> Plan:
        self._number += 1
        rng, number = self._rng, self._number
        steps = self._steps(depth)
        return Plan(
            number, steps, rng.choice((*[None] * 8, *TIMEOUTS_S)), rng.random() < 0.3, self._perhaps(0.1, most=40)
        )

    def family(self, depth: int) -> Plan:
        """Begins with several waits at once, which most plans never come to."""
        plan = self.plan(depth)
        return replace(plan, steps=(Gather(self._branches(depth)), *plan.steps), cancelled_after_s=None)

    def _steps(self, depth: int) -> tuple[Step, ...]:
        return tuple(self._step(depth) for _ in range(self._rng.choice((1, 1, 2, 2))))

    def _branches(self, depth: int) -> tuple[tuple[Step, ...], ...]:
        """Waits that begin and end at different times."""
        rng = self._rng
        return tuple(
            (Sleep(self._seconds(8)), *(self._wait(depth) for _ in range(rng.choice((0, 1, 1, 2)))), *self._steps(0))
            for _ in range(rng.choice((2, 2, 3)))
        )

    def _wait(self, depth: int) -> Wait:
        return Wait(self.plan(max(0, depth - 1)), self._perhaps(0.2), self._perhaps(0.2))

    def _step(self, depth: int) -> Step:
        rng = self._rng
        kind = rng.choice(
            ("sleep", "wait", "wait", "gather", "gather", "gather", "first", "behind", "stubborn", "fail")
        )
        if kind == "sleep" or (depth == 0 and kind not in {"stubborn", "fail"}):
            return Sleep(self._seconds())
        match kind:
            case "wait":
                return self._wait(depth)
            case "gather":
                return Gather(self._branches(depth - 1))
            case "first":
                return First(self._branches(depth - 1), self._perhaps(0.4))
            case "behind":
                return Behind((Sleep(self._seconds()), *self._steps(depth - 1)))
            case "stubborn":
                return Stubborn(self._seconds(8))
            case _:
                return Fail() if rng.random() < 0.3 else Sleep(0)


# --- what jobs count themselves


@dataclass(eq=False)
class Life:
    """One job that runs."""

    plan: Plan
    attempt: Attempt
    open: int = 0
    """Waits that its code has begun and that haven't come back."""
    cut_short: bool = False
    """Whether one of these waits was."""

    @property
    def excused(self) -> bool:
        """Whether it may run without a slot: one that has to end doesn't wait for one either."""
        return self.cut_short or self.attempt.cancelled or self.attempt.timed_out


class BrokenError(AssertionError):
    """Something that must hold doesn't."""


@dataclass
class Board(NoHost):
    """A scoreboard in memory."""

    concurrency: int
    cells: set[int] = field(default_factory=set[int])
    faults: list[str] = field(default_factory=list[str])
    ends: int = 0

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None:
        if cell in self.cells or not 0 <= cell < self.concurrency + SPARE_CELLS:
            self.faults.append(f"started in cell {cell}, which is taken")
        self.cells.add(cell)

    def ended(self, cell: int, ok: bool) -> None:
        self.ends += 1
        self._free(cell)

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        self.ends += 1

    def parked(self, cell: int) -> None:
        self._free(cell)

    def _free(self, cell: int) -> None:
        if cell not in self.cells:
            self.faults.append(f"cell {cell} is free already")
        self.cells.discard(cell)


class Named:
    """A membership that is never lost."""

    consumer = "d1.w"
    server_offset_s = 0.0

    def watch(self, *, lost: Any) -> None: ...


class NoLingering:
    def begin(self, attempt: Attempt) -> None: ...
    def end(self, attempt: Attempt) -> None: ...


class Model:
    """A queue in memory, the finisher of its executor, and the broker of its jobs."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        planner = Planner(self.rng)
        self.concurrency = self.rng.choice((1, 1, 1, 2, 3))
        self.prefetch = self.rng.choice((0, 0, 1, 3))
        families = [planner.family(self.rng.choice((1, 2, 2))) for _ in range(self.rng.choice((2, 3, 4)))]
        rivals = [planner.plan(0) for _ in range(self.rng.choice((0, 6, 12)))]
        self.roots = [(self.rng.randrange(10) * PRECISION_S, plan) for plan in [*families, *rivals]]
        """When each is submitted. Rivals have no children: they keep slots from those that come back."""
        self.trace: list[str] = []
        self._breaks: list[str] = []
        self._queue: deque[Plan] = deque()
        self._plans: dict[int, Plan] = {}
        self._outcomes: dict[str, asyncio.Future[Outcome]] = {}
        self._on: dict[Life, None] = {}
        self._returning: dict[object, None] = {}
        self._behind: dict[asyncio.Task[None], None] = {}
        self._ended = 0
        self._executor: Executor | None = None

    # --- running

    async def main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._board = Board(self.concurrency)
        tasks = {
            _name(timeout_s, hooked): task(
                self._work,
                _name(timeout_s, hooked),
                timeout_s=timeout_s,
                hooks=Hooks(on_start=(_nothing,)) if hooked else None,
            )
            for timeout_s in TIMEOUTS_S
            for hooked in (False, True)
        }
        self._executor = Executor(
            WorkerSpec("w", self.concurrency, tasks),
            cast("Any", Named()),
            cast("Any", self),
            self._board,
            self.rng,
            Keys("model"),
            cast("Any", NoLingering()),
        )
        self._executor.watch_room(self._feed)
        try:
            for at_s, plan in self.roots:
                self._loop.call_later(at_s, self.submit, plan)
            await asyncio.sleep(max(at_s for at_s, _ in self.roots) + PRECISION_S)
            while len(self._outcomes) > self._ended or self._on or self._behind:  # noqa: ASYNC110 - a turn of a virtual clock
                await asyncio.sleep(PRECISION_S)
            await self._executor.drained()
            self._check_end()
        finally:
            await self._executor.aclose()

    def _note(self, what: str) -> None:
        self.trace.append(f"{self._loop.time() - virtual_time.START_S:7.3f} {what}")

    # --- what is checked

    def _running(self) -> list[Life]:
        return [life for life in self._on if not life.open]

    def _check_running(self, *, starts: bool) -> None:
        running = self._running()
        most = self.concurrency if starts else self.concurrency + sum(life.excused for life in running)
        if len(running) > most:
            numbers = [life.plan.number for life in running]
            self._broken(f"{len(running)} run, of {most}: jobs {numbers}")

    def check_quiet(self) -> None:
        """When nothing is ready to happen."""
        executor = self._executor
        if executor is None or not executor.accepting:
            return
        running = len(self._running())
        if running < self.concurrency and self._returning:
            self._broken("a wait is over, a slot is free, and its job doesn't go on")
        if running < self.concurrency and (executor.held or self._queue):
            self._broken("a job is queued, a slot is free, and it doesn't start")
        busy = self.concurrency if self._returning else min(self.concurrency, running)
        if executor.busy != busy or len(self._board.cells) > self.concurrency:
            self._broken(f"busy says {executor.busy}, {busy} run; cells {self._board.cells}")
        if self._board.faults:
            self._broken("; ".join(self._board.faults))
        self._raise()

    def _raise(self) -> None:
        if self._breaks:
            raise BrokenError(self._breaks[0])

    def _check_end(self) -> None:
        executor = self._executor
        assert executor is not None
        if self._on or executor.busy or self._board.cells or self._board.faults:
            self._broken(f"at the end: busy {executor.busy}, cells {self._board.cells}, {self._board.faults}")
        if self._board.ends != self._ended:
            self._broken(f"the scoreboard counted {self._board.ends} ends of {self._ended}")
        self._raise()

    def _broken(self, what: str) -> None:
        """Inside a job an exception would be that job's failure."""
        self._note(f"BROKEN: {what}")
        self._breaks.append(what)

    # --- the queue, the finisher, the broker

    def submit(self, plan: Plan) -> str:
        self._plans[plan.number] = plan
        job_id = _job_id(plan)
        self._outcomes[job_id] = self._loop.create_future()
        if plan.cancelled_after_s is not None:
            self._loop.call_later(plan.cancelled_after_s, self._cancel, job_id)
        self._loop.call_later(self._delay_s(), self._arrive, plan)
        return job_id

    def _arrive(self, plan: Plan) -> None:
        self._queue.insert(self.rng.randrange(len(self._queue) + 1), plan)
        self._feed()

    def _cancel(self, job_id: str) -> None:
        assert self._executor is not None
        if self._executor.cancel(job_id):
            self._note(f"cancel {job_id}")

    def _feed(self) -> None:
        executor = self._executor
        assert executor is not None
        while self._queue and executor.room + self.prefetch > 0:
            plan = self._queue.popleft()
            name = _name(plan.timeout_s, plan.hooked)
            attempt = Attempt(executor.tasks[name].spec, "n", b"1-%d" % plan.number, None, cast("Any", self))
            executor.hold(attempt, b'{"number":%d}' % plan.number)
        executor.wake_runner()

    def finish(self, job: Finish) -> None:
        self._ended += 1
        outcome = outcomes.decode(job.outcome)
        job_id = f"{job.task}:{job.lane}{job.entry_id.decode()}"
        self._note(f"{outcome.status.value} {job_id}")
        self._loop.call_later(self._delay_s(), self._outcomes[job_id].set_result, outcome)

    def flush(self) -> None: ...

    def _delay_s(self) -> float:
        return self.rng.choice((0.0, 0.001, PRECISION_S))

    async def wait(self, job_id: str, timeout_s: float | None) -> Outcome:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self._outcomes[job_id])

    # --- the code of the jobs

    async def _work(self, number: int) -> None:
        plan = self._plans[number]
        life = Life(plan, CURRENT.get())
        self._on[life] = None
        self._note(f"start {number}")
        self._check_running(starts=True)
        try:
            await self._follow(life, plan.steps)
        finally:
            del self._on[life]
            self._note(f"end {number}")

    async def _follow(self, life: Life, steps: Sequence[Step]) -> None:
        for step in steps:
            await self._do(life, step)

    async def _do(self, life: Life, step: Step) -> None:
        match step:
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Wait():
                await self._wait(life, step)
            case Gather(branches):
                await upnext.gather(*(self._follow(life, branch) for branch in branches))
            case First(branches, timeout_s):
                with self._in_time(timeout_s), contextlib.suppress(TimeoutError):
                    await upnext.first_completed(
                        *(self._follow(life, branch) for branch in branches), timeout=timeout_s
                    )
            case Behind(steps):
                behind = asyncio.create_task(self._behind_back(life, steps))
                self._behind[behind] = None
                behind.add_done_callback(self._behind.pop)
            case Stubborn(seconds):
                await self._stay(seconds)
            case Fail():
                raise ValueError("planned")

    async def _behind_back(self, life: Life, steps: Sequence[Step]) -> None:
        with contextlib.suppress(ValueError):
            await self._follow(life, steps)

    async def _stay(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        while (left := until - self._loop.time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left)

    async def _wait(self, life: Life, step: Wait) -> None:
        job_id = self.submit(step.job)
        if not life.open:
            life.cut_short = False
        life.open += 1
        self._note(f"{life.plan.number} waits for {step.job.number}")
        try:
            with self._in_time(step.around_s), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step.around_s):
                    await self._value(life, job_id, step.timeout_s)
        finally:
            life.open -= 1
            self._note(f"{life.plan.number} goes on")
            self._check_running(starts=False)

    async def _value(self, life: Life, job_id: str, timeout_s: float | None) -> None:
        over, returning = self._outcomes[job_id], object()

        def comes_back(_: object) -> None:
            self._returning[returning] = None

        over.add_done_callback(comes_back)
        try:
            with self._in_time(timeout_s):
                await upnext.Future[None](job_id).value(timeout_s)
        except TaskExecutionError:
            pass
        except BaseException:
            life.cut_short = True
            raise
        finally:
            self._returning.pop(returning, None)
            over.remove_done_callback(comes_back)

    @contextlib.contextmanager
    def _in_time(self, timeout_s: float | None) -> Generator[None]:
        """A TimeoutError inside comes at its time."""
        begun_s = self._loop.time()
        try:
            yield
        except TimeoutError:
            took_s = self._loop.time() - begun_s
            if timeout_s is not None and took_s > timeout_s + LATE_S:
                self._broken(f"a timeout of {timeout_s:g} s took {took_s:.3f} s")
            raise


def _nothing(*_: object) -> None: ...


def _name(timeout_s: float | None, hooked: bool) -> str:
    return f"t{timeout_s}{'h' if hooked else ''}"


def _job_id(plan: Plan) -> str:
    return f"{_name(plan.timeout_s, plan.hooked)}:n1-{plan.number}"


def play(seed: int) -> Model:
    """Runs one seed. Raises BrokenError or Stalled, with the trace as a note."""
    model = Model(seed)
    before = access.async_broker
    access.async_broker = lambda _url: cast("Any", model)
    try:
        virtual_time.run(model.main, model.rng, quiet=model.check_quiet)
    except (BrokenError, virtual_time.Stalled) as error:
        error.add_note("\n".join([f"seed {seed}, concurrency {model.concurrency}", *model.trace]))
        raise
    finally:
        access.async_broker = before
    return model
