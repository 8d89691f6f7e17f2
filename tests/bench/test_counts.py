"""What a plain job costs, in counts that don't vary with the machine: commands on the broker, tasks, timers and log lines in the worker."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import redis

import upnext
from tests.support.servers import Server
from tests.support.service import serving
from tests.support.waiting import wait_until_async

JOBS = 3000
PER_JOB = {"xadd": 1, "set": 1}
"""So often for each job: its entry, its result."""
SOMETIMES = 0.4
"""Everything else is shared by many jobs: at most so often for each. On a calm machine it is 0.1; on a busy one fewer end together."""
IDLE_PER_S = 20
"""Of each command, and of timers: what a service does for itself however many jobs there are."""
ONE_BY_ONE = {"xack": 0.5, "xdel": 0.5, "xrange": 0.5, "xtrim": 0.5, "xpending": 0.5}

CALLS = {"submit": 48, "submit_many": 18, "send": 42}
"""Calls of Python functions, for each job or event."""


def commands(client: redis.Redis) -> Counter[str]:
    stats: Any = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()})


async def test_commands_per_job(own_server: Server, namespace: str) -> None:
    """A server of its own: commandstats count everybody's commands, those inside scripts too."""
    worker = upnext.Worker("w", concurrency=10)
    done: list[int] = []

    @worker.task
    async def plain(number: int) -> int:
        done.append(number)
        return number

    client = own_server.client()
    try:
        async with serving(worker, own_server.url, namespace):
            before, begun = commands(client), time.monotonic()
            await plain.submit_many([(number,) for number in range(JOBS)])
            await wait_until_async(lambda: len(done) == JOBS, 60)

            def all_kept() -> bool:
                return commands(client)["set"] - before["set"] >= JOBS

            await wait_until_async(all_kept, 20)
            spent, idle = commands(client) - before, IDLE_PER_S * (time.monotonic() - begun)
    finally:
        client.close()
    for name, count in PER_JOB.items():
        beside = spent.pop(name) - count * JOBS
        assert 0 <= beside < JOBS * SOMETIMES + idle, (
            f"{name}: the list of recent ends, and the scheduler, have a few of their own"
        )
    spent.pop("info")
    dear = {
        name: count / JOBS for name, count in spent.items() if count > JOBS * ONE_BY_ONE.get(name, SOMETIMES) + idle
    }
    assert not dear, f"per job: {dear}"


@pytest.mark.parametrize("registered", [5, 200])
async def test_an_idle_worker_that_wakes_looks_only_where_the_job_came_from(
    own_server: Server, namespace: str, registered: int
) -> None:
    """However many tasks it registered."""
    worker = upnext.Worker("w", concurrency=10)

    async def plain(number: int) -> int:
        return number

    tasks = [worker.task(name=f"plain_{number}")(plain) for number in range(registered)]
    client = own_server.client()
    try:
        async with serving(worker, own_server.url, namespace):
            await tasks[0].wait(0)
            before = commands(client)
            for number in range(30):
                await tasks[number % 5].wait(number)
            spent = commands(client) - before
    finally:
        client.close()
    assert spent["xreadgroup"] <= 6 * 30, "the waiting read, and one lane after the other of one task"


async def test_requests_per_delayed_job(own_server: Server, namespace: str) -> None:
    """One question when it is due, and what every job of an idle worker costs."""
    worker = upnext.Worker("w", concurrency=10)
    jobs = 40
    done: list[int] = []

    @worker.task
    async def later(number: int) -> None:
        done.append(number)

    client = own_server.client()
    try:
        async with serving(worker, own_server.url, namespace):
            await asyncio.gather(*(later.options(delay=1 + number / 20).submit(number) for number in range(jobs)))
            before = commands(client)
            await wait_until_async(lambda: len(done) == jobs, 30)
            spent = commands(client) - before
    finally:
        client.close()
    assert spent["evalsha"] <= 4.5 * jobs + 10, "promote, fetch, finish; some ask again when the machine is slow; beats"
    assert spent["publish"] <= 5, "nobody needs a bell"


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts timers."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = 0

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


@contextmanager
def lines_of(level: int) -> Generator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, root = Keep(level), logging.getLogger("upnext")
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@pytest.mark.parametrize("wait_s", [None, 0.0, 0.003])
def test_a_plain_job_costs_no_task_no_timer_and_no_log_line(
    redis_url: str, namespace: str, wait_s: float | None
) -> None:
    """One that never waits, and ones that do: the timeout goes into the wheel, where it is one of many."""
    made: list[str] = []

    async def main(loop: CountingLoop) -> None:
        worker = upnext.Worker("w", concurrency=10)
        done: list[int] = []

        @worker.task
        async def plain(number: int) -> None:
            if wait_s is not None:
                await asyncio.sleep(wait_s)
            done.append(number)

        def task_made(loop: asyncio.AbstractEventLoop, work: Any, **rest: Any) -> asyncio.Task[Any]:
            made.append(rest.get("name") or "unnamed")
            return asyncio.Task(work, loop=loop, **rest)

        async with serving(worker, redis_url, namespace):
            await plain.submit_many([(number,) for number in range(100)])
            await wait_until_async(lambda: len(done) == 100, 20)
            submit = asyncio.create_task(plain.submit_many([(number,) for number in range(JOBS)]))
            loop.set_task_factory(task_made)
            timers, begun = loop.timers, time.monotonic()
            with lines_of(logging.INFO) as lines:
                ran = asyncio.Event()

                def look() -> None:
                    if len(done) >= JOBS + 100:
                        ran.set()
                    else:
                        loop.call_soon(look)

                loop.call_soon(look)
                await ran.wait()
            loop.set_task_factory(None)
            idle = IDLE_PER_S * (time.monotonic() - begun)
            await submit
            assert not [line for line in lines if "plain" in line]
            assert len(made) < JOBS * SOMETIMES + idle, "runners, which live long, and one for many ends"
            assert loop.timers - timers < JOBS / 10 + idle + (JOBS if wait_s else 0), loop.timers - timers

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop: Any = runner.get_loop()
        runner.run(main(loop))


@contextmanager
def python_calls() -> Generator[Counter[str]]:
    """Python functions entered in this thread."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def test_python_calls_of_a_submit(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In flight together, in bulk, and of an event; entering and resuming coroutines counts."""
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    worker = upnext.Worker("w")

    @worker.task
    async def plain(number: int, words: list[str]) -> None: ...

    event = worker.event("paid")
    for number in range(5):
        event.on(name=f"handler{number}")(plain.function)
    many, words = 500, ["a", "b"]
    await plain.submit(0, words)
    await event.send(number=0, words=words)
    works: dict[str, Callable[[], Awaitable[Any]]] = {
        "submit": lambda: asyncio.gather(*(plain.submit(number=n, words=words) for n in range(many))),
        "submit_many": lambda: plain.submit_many([{"number": n, "words": words} for n in range(many)]),
        "send": lambda: asyncio.gather(*(event.send(number=n, words=words) for n in range(many))),
    }
    for name, work in works.items():
        with python_calls() as calls:
            await work()
        assert calls.total() / many < CALLS[name], f"{name}: {calls.most_common(30)}"
    await upnext.aclose()
