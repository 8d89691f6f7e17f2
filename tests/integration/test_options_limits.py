"""rate_limit and max_concurrency, cluster-wide: never exceeded, never leaked, taken up at once, and nothing is queued a second time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
import redis

import upnext
from tests.support.daemon import Daemon
from tests.support.servers import Server
from tests.support.service import Running, serving
from tests.support.waiting import PATIENCE, wait_until, wait_until_async
from upnext.core import limits
from upnext.core.keys import Keys
from upnext.core.limits import gcra, parse_rate
from upnext.core.spec import RateLimit
from upnext.core.submission import Submission


def lua_gcra(client: redis.Redis) -> Callable[[int, int, RateLimit, int], tuple[int, int, int]]:
    text = (resources.files("upnext.engine") / "lua" / "include" / "gcra.lua").read_text()
    run = client.register_script(
        text
        + "local granted, tat, wait = gcra(tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[3]), tonumber(ARGV[4]))\n"
        + "return {granted, string.format('%.0f', tat), wait}"
    )

    def ask(tat_us: int, now_us: int, limit: RateLimit, want: int) -> tuple[int, int, int]:
        kept = {"rate": limit.count, "period_s": limit.period_s, "burst": limit.burst}
        if limit.burst is None:
            del kept["burst"]
        reply: Any = run(args=[tat_us, now_us, json.dumps(kept), want])
        return reply[0], int(reply[1]), reply[2]

    return ask


@pytest.mark.parametrize("burst", [None, 1, 3])
@pytest.mark.parametrize(
    "rate",
    ["1/s", "10/s", "7/s", "20/s", "100/s", "999/s", "100000/s", "10/minute", "1/366d", "7/3h", "5000/2h", "3/7s"],
)
def test_the_script_and_the_core_agree_on_random_sequences(server: Server, rate: str, burst: int | None) -> None:
    rng = random.Random(rate)
    limit = replace(parse_rate(rate), burst=burst)
    step = limits.interval_us(limit)
    client = server.client()
    try:
        ask = lua_gcra(client)
        for _ in range(8):
            now, tat = 1_763_762_400_000_000 + rng.randrange(10**9), 0
            for _ in range(60):
                now += rng.choice(
                    (0, 1, 999, step // 2, step - 1, step, step + 1, rng.randrange(3 * step), 49_999, 50_001)
                )
                if rng.random() < 0.05:
                    tat = now + rng.randrange(10**12)
                want = rng.choice((0, 1, 1, 2, 7, 200))
                expected = gcra(tat, now, limit, want)
                assert ask(tat, now, limit, want) == expected
                tat = expected[1]
    finally:
        client.close()


async def queued_again(running: Running, task: str) -> int:
    """Jobs of the task that became an entry a second time: handed back, reaped or retried."""
    info: Any = await running.command("XINFO", "STREAM", running.keys.stream(task, "b"))
    return int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"])


SERVICE = '''
    """Limited tasks that note when they run."""
    import asyncio, os, time
    import upnext

    worker = upnext.Worker("w", concurrency=3)

    @worker.task(rate_limit="10/s")
    async def rated(number: int) -> None:
        pass

    @worker.task(max_concurrency=3, max_crashes=100)
    async def bounded(number: int) -> None:
        await asyncio.sleep(0.05)

    @worker.task
    async def pid() -> int:
        await asyncio.sleep(0.02)
        return os.getpid()
'''


def handles() -> Any:
    worker = upnext.Worker("handles")

    @worker.task(rate_limit="10/s")
    async def rated(number: int) -> None: ...

    @worker.task(max_concurrency=3)
    async def bounded(number: int) -> None: ...

    return worker


@pytest.fixture
def two_daemons(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> list[Daemon]:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    both = [
        daemon(
            SERVICE,
            redis_url=redis_url,
            namespace=namespace,
            workers=4,
            wait=False,
            args=("--service-name", "limits"),
        )
        for _ in range(2)
    ]
    for one in both:
        one.wait_ready(60)
    return both


@contextmanager
def grants(server: Server, namespace: str, task: str) -> Generator[list[float]]:
    """When the server gave a permit of the task's rate, by its own clock, Unix seconds: each moves the theoretical arrival time once."""
    seen: list[float] = []
    client = server.client()
    words = f"HSET {Keys(namespace).gcra} {task} "

    def listen(monitor: Any) -> None:
        for row in monitor.listen():
            if row["command"].startswith(words):
                seen.append(row["time"])
            elif row["command"] == f"ECHO {namespace}":
                return

    with client.monitor() as monitor, ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen, monitor)
        try:
            yield seen
        finally:
            client.echo(namespace)
            listening.result(30)
            client.close()


def test_ten_a_second_over_four_children_of_two_daemons(
    two_daemons: list[Daemon], server: Server, namespace: str
) -> None:
    assert len(two_daemons) == 2
    with grants(server, namespace, "rated") as given:
        futures = handles().tasks["rated"].submit_many_sync([(number,) for number in range(62)])
        for future in futures:
            future.result_sync(60)
    assert len(given) == 62, "one permit a job"
    windows = [sum(1 for at in given if start <= at < start + 1) for start in given]
    assert 9 <= max(windows) <= 10, (
        f"no second has more than 10, wherever it begins, and they are made use of: {windows}"
    )


def test_concurrency_holds_while_workers_are_killed(two_daemons: list[Daemon], server: Server, namespace: str) -> None:
    futures = handles().tasks["bounded"].submit_many_sync([(number,) for number in range(300)])
    keys = Keys(namespace)
    client = server.client()
    seen: list[int] = []

    def held() -> int:
        with client.pipeline(transaction=True) as together:
            for stream in keys.streams("bounded"):
                together.xpending(stream, "w")
            return sum(one["pending"] for one in together.execute())

    try:
        kills = 0
        deadline = time.monotonic() + 100
        ended: Any = 0
        while ended < len(futures) and time.monotonic() < deadline:
            seen.append(held())
            ended = int(client.hget(keys.stats, "bounded:done") or 0)
            if kills < 6 and ended > 20 * kills:
                pids = [pid for one in two_daemons for pid in one.worker_pids().values()]
                if pids:
                    os.kill(random.Random(kills).choice(pids), signal.SIGKILL)
                    kills += 1
        for future in futures:
            future.result_sync(30)
        assert max(seen) <= 3
        assert kills >= 3
        wait_until(lambda: held() == 0, 10, "no permit to be left")
        again = [handles().tasks["bounded"].submit_sync(n) for n in range(3)]
        for future in again:
            future.result_sync(60)
    finally:
        client.close()


async def test_a_freed_permit_and_a_new_job_are_taken_up_at_once_by_an_idle_worker(
    redis_url: str, namespace: str
) -> None:
    let_go = asyncio.Event()

    def make() -> upnext.Worker:
        worker = upnext.Worker("w", concurrency=1)

        @worker.task(max_concurrency=1, shared=True)
        async def one(wait: bool = False) -> float:
            begun = time.time()
            if wait:
                await let_go.wait()
            return begun

        @worker.task(shared=True)
        async def holds() -> None:
            await let_go.wait()

        return worker

    worker = make()
    task = worker.tasks["one"]
    async with serving(worker, redis_url, namespace, copies=2) as running:
        first = await task.submit(True)
        await wait_until_async(lambda: _held(running, "one", 1), 10)
        others = [await task.submit() for _ in range(5)]
        await asyncio.sleep(0)
        freed = time.time()
        let_go.set()
        await first.value(60)
        begun = [await future.value(60) for future in others]
        assert max(begun) - freed < 5.0 * PATIENCE, "five in a row, each within a second of the one before"
        assert all(later - earlier < 1.0 * PATIENCE for earlier, later in zip([freed, *begun], begun, strict=False))
        quiet = await task.submit()
        submitted = time.time()
        assert await quiet.value(60) - submitted < 1.0 * PATIENCE
        assert await queued_again(running, "one") == 0


async def test_a_job_that_rang_no_bell_is_taken_up_within_a_second(redis_url: str, namespace: str) -> None:
    """As submitted by a program that doesn't know of the limit."""
    worker = upnext.Worker("w")

    @worker.task(rate_limit="100/s")
    async def rated() -> float:
        return time.time()

    async with serving(worker, redis_url, namespace) as running:
        for _ in range(3):
            submitted = time.time()
            job_id = await running.broker.submit(Submission("rated", b"{}"))
            assert await rated.future(job_id).value(60) - submitted < 1.0 * PATIENCE


async def _held(running: Running, task: str, count: int) -> bool:
    return await running.pending(task) == count


async def test_a_failed_attempt_frees_its_permit(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)

    @worker.task(max_concurrency=1, retries=1, retry_delay=8)
    async def flaky(fail: bool) -> float:
        if fail and upnext.get_current_context().attempt == 1:
            raise ValueError("later")
        return time.time()

    async with serving(worker, redis_url, namespace):
        failing, waiting = await flaky.submit(True), await flaky.submit(False)
        submitted = time.time()
        assert await waiting.value(60) - submitted < 1.0 * PATIENCE, "while the other waits for its next attempt"
        assert (await failing.result(60)).attempts == 2


async def test_rate_limited_jobs_are_never_queued_again(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=10)

    @worker.task(rate_limit="50/s", max_concurrency=5)
    async def rated() -> None:
        await asyncio.sleep(0.01)

    async with serving(worker, redis_url, namespace, copies=2) as running:
        futures = [await rated.submit() for _ in range(60)]
        for future in futures:
            await future.result(30)
        assert await queued_again(running, "rated") == 0


async def test_high_goes_first(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1, prefetch=0)
    order: list[str] = []
    let_go = asyncio.Event()

    @worker.task
    async def task(name: str) -> None:
        order.append(name)
        await let_go.wait()

    @worker.task(priority="high")
    async def urgent(name: str) -> None:
        order.append(name)

    async with serving(worker, redis_url, namespace):
        futures = [await task.submit("first")]
        await wait_until_async(lambda: order == ["first"], 10)
        futures += [await task.submit(f"normal {n}") for n in range(3)]
        futures += [await task.options(priority="high").submit(f"high {n}") for n in range(3)]
        let_go.set()
        for future in futures:
            await future.result(30)
        assert order == ["first", "high 0", "high 1", "high 2", "normal 0", "normal 1", "normal 2"]
        assert (await urgent.submit("u")).job_id.startswith("urgent:h")
