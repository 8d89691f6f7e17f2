"""Workers and schedulers of the engine on a test's own loop, over a real broker; each can die as a process does, without a goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import orjson
import redis

from tests.support.leaks import leaks
from tests.support.waiting import given, wait_until_async
from upnext.core.binding import Signature
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus, Outcome
from upnext.core.spec import CronSpec, Hooks, ServiceSpec, TaskKind, TaskOptions, TaskSpec, WorkerSpec
from upnext.core.submission import Submission
from upnext.core.suspects import SPARE_CELLS, OneAtATime, Suspects
from upnext.engine.calls import client as client_calls
from upnext.engine.client.queue_client import QueueClient
from upnext.engine.scheduler.reaper import DeathNotice, Started
from upnext.engine.scheduler.scheduler import Scheduler, SchedulerSettings
from upnext.engine.worker.host import NoHost
from upnext.engine.worker.runtime import WorkerRuntime
from upnext.engine.worker.settings import RuntimeSettings
from upnext.errors import BrokerUnavailableError

T = TypeVar("T")


def task(
    function: Callable[..., Any],
    name: str | None = None,
    *,
    cron: CronSpec | None = None,
    event: str | None = None,
    hooks: Hooks | None = None,
    **options: Any,
) -> TaskSpec:
    kind = TaskKind.CRON if cron else TaskKind.EVENT if event else TaskKind.TASK
    own = name or function.__name__
    return TaskSpec(
        f"{event}.{own}" if event else own,
        kind,
        function,
        inspect.iscoroutinefunction(function),
        Signature.of(function),
        TaskOptions(**options),
        hooks or Hooks(),
        event,
        cron,
    )


class Board(NoHost):
    """The scoreboard of one worker, kept in memory. `faults` are calls that no scoreboard could make sense of."""

    def __init__(self, fleet: Fleet, daemon: str, tasks: Sequence[str], concurrency: int) -> None:
        self._fleet, self._daemon, self._tasks, self._concurrency = fleet, daemon, tasks, concurrency
        self.consumers: list[str] = []
        self.is_ready = asyncio.Event()
        self.cells: dict[int, Started] = {}
        self.starts: list[Started] = []
        self.ends = 0
        self.stuck_jobs: list[tuple[str, str]] = []
        self.faults: list[str] = []

    def consumer(self, consumer: str) -> None:
        self._fleet._lives(self._daemon, consumer, self.consumers[-1] if self.consumers else None)
        self.consumers.append(consumer)

    def ready(self) -> None:
        self.is_ready.set()

    def started(
        self, cell: int, task: int, lane: int, entry_ms: int, entry_seq: int, born: int, born_ms: int, born_seq: int
    ) -> None:
        if cell in self.cells or not 0 <= cell < self._concurrency + SPARE_CELLS:
            self.faults.append(f"started in cell {cell}, taken by {self.cells.get(cell)}")
        name = self._tasks[task]
        job_id = f"{name}:{chr(born)}{born_ms}-{born_seq}"
        self.cells[cell] = Started(name, chr(lane), f"{entry_ms}-{entry_seq}", job_id)
        self.starts.append(self.cells[cell])

    def ended(self, cell: int, ok: bool) -> None:
        self.ends += 1
        self._free(cell, "ended")

    def parked(self, cell: int) -> None:
        self._free(cell, "parked")

    def ended_parked(self, task: int, entry_ms: int, entry_seq: int, ok: bool) -> None:
        self.ends += 1

    def _free(self, cell: int, what: str) -> None:
        if self.cells.pop(cell, None) is None:
            self.faults.append(f"{what} in cell {cell}, which is free")

    def stuck(self, job_id: str, reason: str) -> None:
        self.stuck_jobs.append((job_id, reason))


class Life:
    """One worker that runs."""

    def __init__(self, runtime: WorkerRuntime, board: Board) -> None:
        self.runtime, self.board = runtime, board
        self.task = asyncio.create_task(runtime.run(), name="test-worker")

    @property
    def consumer(self) -> str:
        return self.runtime.consumer

    async def stop(self, grace_s: float | None = 5.0) -> list[str]:
        left = await self.runtime.stop(grace_s)
        await self.task
        return left

    async def die(self, cause: str = "signal:SIGKILL", *, charge: bool = True) -> DeathNotice:
        """As a killed process: nothing is sent to the broker any more. -> what its supervisor would tell."""
        notice = DeathNotice(self.consumer, cause, charge, tuple(self.board.cells.values()))
        self.runtime._membership.consumer = ""  # nobody to say goodbye for
        for link in (self.runtime._broker.link, self.runtime._fetcher._connection.link, self.runtime._listener._link):
            link.abort()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        return notice


class Fleet:
    """`async with Fleet(url, namespace) as fleet:`; what was started in it is stopped at its end."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url, self.namespace = url, namespace
        self.keys = Keys(namespace)
        self.workers: list[Life] = []
        self.reaped: list[str] = []
        self.lost: list[str] = []
        self._schedulers: list[tuple[str, Scheduler, asyncio.Task[None]]] = []
        self._alive: dict[str, set[str]] = {}
        self.broker: QueueClient

    async def __aenter__(self) -> Self:
        self.broker = QueueClient(self.url, self.namespace)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for life in self.workers:
            if not life.task.done():
                life.task.cancel()
        await asyncio.gather(*(life.task for life in self.workers), return_exceptions=True)
        for _, scheduler, _ in self._schedulers:
            await scheduler.stop()
        ends = await asyncio.gather(*(life for *_, life in self._schedulers), return_exceptions=True)
        await self.broker.aclose()
        if exc[0] is None:
            assert not any(isinstance(end, Exception) for end in ends), ends
            faults = [fault for life in self.workers for fault in life.board.faults]
            assert not faults, faults

    # starting

    async def worker(
        self,
        *tasks: TaskSpec,
        concurrency: int = 2,
        daemon: str = "d1",
        service: str = "orders",
        url: str | None = None,
        wait: bool = True,
        generation_ms: int = 1,
        passing: bool = False,
        suspects: Suspects = Suspects.SHARE,
        one_at_a_time: OneAtATime | None = None,
        **options: Any,
    ) -> Life:
        spec = WorkerSpec("w", concurrency, {one.name: one for one in tasks}, **options)
        board = Board(self, daemon, list(spec.tasks), concurrency)
        settings = RuntimeSettings(
            url or self.url,
            self.namespace,
            daemon,
            generation_ms=generation_ms,
            suspects=suspects,
            one_at_a_time=one_at_a_time,
            passing=passing,
        )
        life = Life(WorkerRuntime(spec, ServiceSpec(service, (spec,)), settings, board), board)
        self.workers.append(life)
        if wait:
            ready = asyncio.create_task(board.is_ready.wait())
            await asyncio.wait([ready, life.task], timeout=given(10), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if life.task.done():
                await life.task
            assert board.is_ready.is_set()
        return life

    async def scheduler(
        self,
        daemon: str = "d1",
        *tasks: TaskSpec,
        service: str = "orders",
        declared: Sequence[TaskSpec] = (),
        **settings: Any,
    ) -> Scheduler:
        """`declared` is what the service declares besides `tasks`, and doesn't run here."""
        spec = WorkerSpec("w", 1, {one.name: one for one in tasks})
        all_of_it = (spec, WorkerSpec("x", 1, {one.name: one for one in declared}))
        chosen: dict[str, Any] = {
            "redis_url": self.url,
            "service": ServiceSpec(service, (spec,), declared=all_of_it) if tasks or declared else None,
            "generation_ms": 1,
            **settings,
        }
        scheduler = Scheduler(
            SchedulerSettings(namespace=self.namespace, daemon_id=daemon, **chosen),
            self.reaped.append,
            self.lost.append,
        )
        scheduler.alive(self._alive.get(daemon, set()))
        self._schedulers.append((daemon, scheduler, asyncio.create_task(scheduler.run(), name="test-scheduler")))
        return scheduler

    @property
    def daemons(self) -> list[str]:
        """Those whose scheduler runs."""
        return [daemon for daemon, _, _ in self._schedulers]

    async def no_scheduler(self) -> None:
        """All of them end."""
        for _, scheduler, _ in self._schedulers:
            await scheduler.stop()
        await asyncio.gather(*(life for *_, life in self._schedulers))
        self._schedulers.clear()

    def _lives(self, daemon: str, consumer: str, instead_of: str | None) -> None:
        alive = self._alive.setdefault(daemon, set())
        alive.discard(instead_of or "")
        alive.add(consumer)
        for other, scheduler, _ in self._schedulers:
            if other == daemon:
                scheduler.alive(alive)

    def report_dead(self, notice: DeathNotice) -> None:
        """The supervisor's word to the schedulers of this host."""
        for daemon, alive in self._alive.items():
            if notice.consumer in alive:
                alive.discard(notice.consumer)
                for other, scheduler, _ in self._schedulers:
                    if other == daemon:
                        scheduler.died(notice)

    # producing

    async def submit(self, name: str, /, *, of: dict[str, Any] | None = None, **arguments: Any) -> str:
        """`of` are fields of the Submission."""
        return await self.broker.submit(Submission(name, orjson.dumps(arguments), **(of or {})))

    async def submit_many(self, name: str, count: int) -> list[str]:
        return await self.broker.submit_many([Submission(name, b"{}")] * count)

    async def run(
        self, name: str, /, *, timeout_s: float = 8.0, of: dict[str, Any] | None = None, **arguments: Any
    ) -> Outcome:
        job = Submission(name, orjson.dumps(arguments), **(of or {}))
        return (await self.broker.submit_and_wait(job, given(timeout_s)))[1]

    async def value(self, job_id: str, timeout_s: float = 8.0) -> Any:
        outcome = await self.broker.wait(job_id, given(timeout_s))
        assert outcome.status is JobStatus.DONE, outcome
        return orjson.loads(outcome.value)

    # looking

    async def command(self, *words: str | bytes | float) -> Any:
        return await self.broker.link.command(*words)

    async def stats(self) -> dict[str, int]:
        flat = await self.command("HGETALL", self.keys.stats)
        return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def lengths(self, name: str) -> str:
        """How many entries the lanes hold, like `n2 b1`."""
        counts = {letter: await self.command("XLEN", self.keys.stream(name, letter)) for letter in "nhbx"}
        return " ".join(f"{letter}{count}" for letter, count in counts.items() if count)

    async def pending(self, name: str) -> int:
        total = 0
        for stream in self.keys.streams(name):
            total += (await self.command("XPENDING", stream, "w"))[0]
        return total

    async def standing(self, job_id: str) -> client_calls.Standing:
        return await self.broker.run(client_calls.watch(self.keys, job_id, ""))

    async def until(
        self, condition: Callable[[], T] | Callable[[], Awaitable[T]], timeout_s: float = 8.0, what: str = ""
    ) -> T:
        return await wait_until_async(condition, timeout_s, what)

    async def reachable(self, timeout_s: float = 8.0) -> None:
        """Returns when this test's own client has a connection again."""

        async def answers() -> bool:
            with contextlib.suppress(BrokerUnavailableError):
                return await self.command("PING") is not None
            return False

        await wait_until_async(answers, timeout_s, "the broker to answer")

    async def leaks(self) -> list[str]:
        def look() -> list[str]:
            with contextlib.closing(redis.Redis.from_url(self.url)) as client:
                return leaks(client, self.keys)

        # an end reaches its waiter before its holder has taken note of it
        await self.until(
            lambda: all(not life.runtime._finisher.unconfirmed for life in self.workers), 5, "ends confirmed"
        )
        return await asyncio.to_thread(look)
