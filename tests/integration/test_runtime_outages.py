"""The broker goes away, loses its data or refuses: the next job runs soon after it is back, nobody spins meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.support.fleet import Fleet, task
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import PATIENCE
from upnext.core.outcome import JobStatus
from upnext.core.spec import CronSpec
from upnext.engine.redis import connection, subscriber
from upnext.errors import BrokerFullError, BrokerUnavailableError

SOON_S = 2.0 * PATIENCE


async def echo(number: int = 1) -> int:
    return number


async def check_soon(fleet: Fleet) -> None:
    """A plain job, one from a fresh client and a delayed one run within SOON_S."""
    await fleet.reachable()
    begun = time.monotonic()
    plain = fleet.run("echo", timeout_s=SOON_S, number=3)
    delayed = fleet.run("echo", timeout_s=SOON_S, number=4, of={"delay_s": 0.05})
    high = fleet.run("echo", timeout_s=SOON_S, number=5, of={"priority": "high"})
    outcomes = await asyncio.gather(plain, delayed, high)
    assert [outcome.value for outcome in outcomes] == [b"3", b"4", b"5"]
    assert time.monotonic() - begun < SOON_S


async def ready(fleet: Fleet, **options: object) -> None:
    scheduler = await fleet.scheduler("d1")
    await fleet.worker(task(echo))
    await fleet.until(lambda: scheduler.leader)
    await check_soon(fleet)


@pytest.mark.parametrize("times", [1, 3])
async def test_flushall(own_server: Server, namespace: str, times: int) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        for _ in range(times):
            await fleet.command("FLUSHALL")
            await check_soon(fleet)
        assert await fleet.leaks() == []


async def test_flushall_while_jobs_run_writes_nothing_of_the_old(own_server: Server, namespace: str) -> None:
    release = asyncio.Event()

    async def ship() -> int:
        await release.wait()
        return 1

    async with Fleet(own_server.url, namespace) as fleet:
        life = await fleet.worker(task(ship), task(echo))
        first = life.consumer
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: life.runtime.running_ids == [job_id])
        await fleet.command("FLUSHALL")
        await fleet.until(lambda: life.consumer != first)
        release.set()
        await fleet.until(lambda: not life.runtime.running_ids)
        assert (await fleet.run("echo", timeout_s=SOON_S)).status is JobStatus.DONE
        assert await fleet.command("EXISTS", fleet.keys.result(job_id)) == 0
        assert await fleet.stats() == {"echo:done": 1}
        assert await fleet.leaks() == []


async def test_a_cron_ticks_on_after_flushall(own_server: Server, namespace: str) -> None:
    ticks: list[float] = []

    async def tidy() -> None:
        ticks.append(time.time())

    spec = task(tidy, cron=CronSpec("* * * * * *"))
    async with Fleet(own_server.url, namespace) as fleet:
        await fleet.scheduler("d1", spec)
        await fleet.worker(spec)
        await fleet.until(lambda: ticks)
        await fleet.command("FLUSHALL")
        flushed, before = time.time(), len(ticks)
        await fleet.until(lambda: len(ticks) > before, 6)
        assert ticks[before] - flushed < 1.0 * PATIENCE + SOON_S


async def test_script_flush(own_server: Server, namespace: str) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        await fleet.command("SCRIPT", "FLUSH")
        await check_soon(fleet)
        assert await fleet.leaks() == []


async def test_all_connections_killed_again_and_again(own_server: Server, namespace: str) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        consumer = fleet.workers[0].consumer
        for _ in range(5):
            await asyncio.to_thread(own_server.cli, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.to_thread(own_server.cli, "CLIENT", "KILL", "TYPE", "pubsub")
            await check_soon(fleet)
        assert fleet.workers[0].consumer == consumer, "nobody living is reaped"
        assert await fleet.leaks() == []


async def test_readonly_for_a_while(own_server: Server, namespace: str) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        own_server.cli("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(BrokerUnavailableError):
            await fleet.command("SET", "x", "y")
        own_server.cli("REPLICAOF", "NO", "ONE")
        await check_soon(fleet)
        assert await fleet.leaks() == []


@pytest.mark.parametrize("keep_data", [True, False])
async def test_restart(own_server: Server, namespace: str, keep_data: bool) -> None:
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        queued = None
        if keep_data:
            fleet.workers[0].runtime.pause()
            await fleet.workers[0].runtime._fetcher.quiet()
            queued = await fleet.submit("echo", number=9)
        await asyncio.to_thread(own_server.restart, keep_data=keep_data)
        if queued is not None:
            fleet.workers[0].runtime.resume()
            assert await fleet.value(queued, SOON_S) == 9
        await check_soon(fleet)
        assert await fleet.leaks() == []


async def test_running_work_goes_on_without_the_broker_and_its_end_is_told_later(
    own_server: Server, namespace: str
) -> None:
    release = asyncio.Event()

    async def ship() -> int:
        await release.wait()
        return 6

    async with Fleet(own_server.url, namespace) as fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(ship))
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: life.runtime.running_ids == [job_id])
        await asyncio.to_thread(own_server.stop)
        release.set()
        await fleet.until(lambda: not life.runtime.running_ids and life.runtime._finisher.unconfirmed == 1)
        await asyncio.to_thread(own_server.start)
        assert await fleet.value(job_id, SOON_S) == 6
        assert len(life.board.starts) == 1
        assert await fleet.leaks() == []


async def test_a_frozen_broker(own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: connections stay open and nothing answers; after a while they are given up."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT_S", 1.5)
    monkeypatch.setattr(subscriber, "PROVE_S", 0.2)
    monkeypatch.setattr(subscriber, "DEAF_S", 1.5)
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        own_server.freeze()
        try:
            await fleet.until(lambda: fleet.workers[0].runtime._broker.link.live is None, 6)
        finally:
            own_server.thaw()
        await check_soon(fleet)
        assert await fleet.leaks() == []


async def test_a_path_that_is_silent(server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No FIN, no RST: the worker notices by itself, and takes up its work when the path is there again."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT_S", 1.5)
    monkeypatch.setattr(subscriber, "PROVE_S", 0.2)
    monkeypatch.setattr(subscriber, "DEAF_S", 1.5)
    with Proxy(server) as path:
        async with Fleet(server.url, namespace) as fleet:
            await fleet.scheduler()
            life = await fleet.worker(task(echo), url=path.url)
            await check_soon(fleet)
            path.silence()
            await fleet.until(lambda: life.runtime._broker.link.live is None and not life.runtime._listener.up, 8)
            path.mend()
            path.cut()
            assert await fleet.value(await fleet.submit("echo", number=8), 4) == 8
            assert await fleet.leaks() == []


@pytest.mark.parametrize("fault", ["close_down", "stop"])
async def test_nobody_spins_while_the_broker_is_away(own_server: Server, namespace: str, fault: str) -> None:
    with Proxy(own_server) as path:
        async with Fleet(path.url, namespace) as fleet:
            await ready(fleet)
            if fault == "stop":
                await asyncio.to_thread(own_server.stop)
            else:
                path.close_down()
            await fleet.until(lambda: fleet.workers[0].runtime._broker.link.live is None)
            connections, cpu_s, begun = path.connections, time.process_time(), time.monotonic()
            await fleet.until(lambda: time.monotonic() - begun > 2.0, 5)
            # about six connections that each come back after at most a second
            assert path.connections - connections < 30 * (time.monotonic() - begun)
            assert time.process_time() - cpu_s < 0.5 * (time.monotonic() - begun)
            if fault == "stop":
                await asyncio.to_thread(own_server.start)
            else:
                path.mend()
            await check_soon(fleet)


@pytest.mark.parametrize("after", ["nothing", "flushall", "kill", "script flush"])
async def test_an_idle_worker_asks_little_also_after_a_fault(own_server: Server, namespace: str, after: str) -> None:
    def commands() -> int:
        return int(own_server.client().info("stats")["total_commands_processed"])

    faults: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "flushall": lambda: own_server.cli("FLUSHALL"),
        "kill": lambda: own_server.cli("CLIENT", "KILL", "TYPE", "normal"),
        "script flush": lambda: own_server.cli("SCRIPT", "FLUSH"),
    }
    async with Fleet(own_server.url, namespace) as fleet:
        await ready(fleet)
        faults[after]()
        await check_soon(fleet)
        before, begun = commands(), time.monotonic()
        await fleet.until(lambda: time.monotonic() - begun > 2.0, 5)
        assert commands() - before < 20 * (time.monotonic() - begun)


async def test_a_full_broker_refuses_submits_and_running_work_ends(own_server: Server, namespace: str) -> None:
    release = asyncio.Event()
    tries: list[int] = []

    async def ship() -> int:
        await release.wait()
        return 1

    async def flaky() -> int:
        await release.wait()
        tries.append(1)
        if len(tries) == 1:
            raise ValueError
        return 2

    async with Fleet(own_server.url, namespace) as fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(ship), task(flaky, retries=1, retry_delay_s=0.01))
        jobs = [await fleet.submit("ship"), await fleet.submit("flaky")]
        await fleet.until(lambda: len(life.runtime.running_ids) == 2)
        await fleet.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BrokerFullError):
            await fleet.submit("ship")
        release.set()
        assert [await fleet.value(job_id, 5) for job_id in jobs] == [1, 2]
        await fleet.command("CONFIG", "SET", "maxmemory", "0")
        assert (await fleet.run("ship")).value == b"1"
        assert await fleet.leaks() == []
