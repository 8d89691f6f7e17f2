"""A daemon's scheduler: leases, the leadership, what other hosts leave behind, crons."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.clocks import SteppedClock
from tests.support.fleet import Fleet, Life, task
from tests.support.proxy import Proxy
from tests.support.servers import NoServerError, Server
from tests.support.waiting import PATIENCE
from upnext.core.keys import GROUP
from upnext.core.outcome import JobStatus
from upnext.core.spec import CronSpec, MissedRunPolicy, TaskSpec
from upnext.engine.attempt import CURRENT
from upnext.engine.scheduler import consumer_sweep, cron_loop, reaper, scheduler
from upnext.engine.worker import membership

LEASE_S = 2.0
EVERY_SECOND = CronSpec("* * * * * *")


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything five times as fast, and beats ten times, so that many may be late."""
    for module in (membership, scheduler):
        monkeypatch.setattr(module, "LEASE_MS", int(LEASE_S * 1000))
    monkeypatch.setattr(scheduler, "BEAT_S", LEASE_S / 10)
    monkeypatch.setattr(scheduler, "LEADERSHIP_MS", 1500)
    monkeypatch.setattr(scheduler, "ANNOUNCE_S", 0.5)
    monkeypatch.setattr(reaper, "SWEEPS_S", (0.0, 0.05, 0.2))


async def sleeper(wait_s: float = 60.0) -> int:
    await asyncio.sleep(wait_s)
    return 1


async def echo() -> int:
    return 1


async def passed(fleet: Fleet, seconds: float) -> None:
    """So much time went by, while everything else went on."""
    begun = time.monotonic()
    await fleet.until(lambda: time.monotonic() - begun > seconds, seconds + 5)


async def running(fleet: Fleet, life: Life, job_id: str) -> None:
    await fleet.until(lambda: life.runtime.running_ids == [job_id])


# --- leases


@pytest.mark.usefixtures("short_leases")
async def test_the_living_keep_their_leases_and_their_jobs(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1")
        await fleet.scheduler("d2")
        life = await fleet.worker(task(sleeper))
        consumer = life.consumer
        job_id = await fleet.submit("sleeper", wait_s=2.5 * LEASE_S)
        assert await fleet.value(job_id) == 1
        assert len(life.board.starts) == 1
        assert life.consumer == consumer
        assert fleet.lost == []
        assert await fleet.leaks() == []


@pytest.mark.usefixtures("short_leases")
async def test_a_worker_whose_loop_stands_still_keeps_its_lease(redis_url: str, namespace: str) -> None:
    """The kernel says who lives, not the worker's loop: its scheduler beats for it."""

    async def hog() -> int:
        until = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < until:
            pass
        return 1

    def holds_the_loop() -> None:
        asyncio.run(_serve())

    async def _serve() -> None:
        async with Fleet(redis_url, namespace) as fleet:
            await fleet.worker(task(hog), daemon="d1")
            ready.append(fleet.workers[0].consumer)
            await fleet.until(lambda: bool(stop), 20)

    ready: list[str] = []
    stop: list[bool] = []
    async with Fleet(redis_url, namespace) as fleet:
        other = asyncio.create_task(asyncio.to_thread(holds_the_loop))
        await fleet.until(lambda: ready)
        own = await fleet.scheduler("d1")
        own.alive(ready)
        await fleet.scheduler("d2")
        outcome = await fleet.run("hog")
        assert (outcome.status, outcome.worker, outcome.crashes) == (JobStatus.DONE, ready[0], 0)
        stop.append(True)
        await other


@pytest.mark.usefixtures("short_leases")
async def test_a_lost_host_s_jobs_start_elsewhere_after_its_lease(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d2")
        life = await fleet.worker(task(sleeper), daemon="d1")
        job_id = await fleet.submit("sleeper")
        await running(fleet, life, job_id)
        leased = time.monotonic()
        await life.die()
        survivor = await fleet.worker(task(sleeper), daemon="d2")
        await running(fleet, survivor, job_id)
        assert time.monotonic() - leased >= 0.5 * LEASE_S
        raw = await fleet.command("XRANGE", fleet.keys.stream("sleeper", "b"), "-", "+")
        assert b'"h":1' in raw[0][1][3]
        assert b'"c"' not in raw[0][1][3]

        async def buried() -> bool:
            return await fleet.command("EXISTS", fleet.keys.graves) == 0

        await fleet.until(buried, what="the sweeps to end and the grave to be closed")
        assert [name.decode() for name in await fleet.command("HKEYS", fleet.keys.consumers)] == [survivor.consumer]


@pytest.mark.usefixtures("short_leases")
async def test_the_read_of_a_host_that_went_silent_is_cut_and_never_fed(server: Server, namespace: str) -> None:
    with Proxy(server) as path:
        async with Fleet(server.url, namespace) as fleet:
            await fleet.scheduler("d2")
            gone = await fleet.worker(task(echo), daemon="d1", url=path.url)
            await fleet.until(lambda: gone.runtime._fetcher._connection.blocked is not None)
            path.silence()

            async def reaped() -> bool:
                return await fleet.command("ZSCORE", fleet.keys.leases, gone.consumer) is None

            await fleet.until(reaped)
            survivor = await fleet.worker(task(echo), daemon="d2")
            for _ in range(10):
                assert await fleet.value(await fleet.submit("echo"), 3) == 1
            assert len(survivor.board.starts) == 10


def _reads_directly(requests: bytes) -> bool:
    return b"\r\nXREADGROUP\r\n" in requests and b"BLOCK" not in requests  # the text of a script has the word, too


@pytest.mark.usefixtures("short_leases")
async def test_a_read_that_arrives_after_its_consumer_was_reaped_takes_nothing(server: Server, namespace: str) -> None:
    """On its way when the network goes, delivered when the network is back: nothing may be given to a consumer that is gone."""
    jobs = 5_000
    with Proxy(server) as path:
        async with Fleet(server.url, namespace) as fleet:
            await fleet.scheduler("d2")
            await fleet.submit_many("echo", jobs)
            path.hold_when = _reads_directly
            gone = await fleet.worker(task(echo), daemon="d1", url=path.url, concurrency=20, wait=False)
            await fleet.until(lambda: path.holds, what="a backlog to be read without the script")
            first = gone.consumer

            async def removed() -> bool:
                return not await fleet.command("HEXISTS", fleet.keys.consumers, first)

            await fleet.until(removed)
            path.release()
            await fleet.until(lambda: gone.consumer != first, what="the worker to register anew")
            assert await consumers(fleet, "echo") <= set(await records(fleet))

            async def all_done() -> bool:
                return (await fleet.stats()).get("echo:done", 0) == jobs

            await fleet.until(all_done, 15)
            assert await fleet.leaks() == []


async def consumers(fleet: Fleet, name: str) -> set[str]:
    """All that have a place in a group of this task."""
    found: set[str] = set()
    for stream in fleet.keys.streams(name):
        found |= {
            dict(zip(one[::2], one[1::2], strict=True))[b"name"].decode() for one in await _members(fleet, stream)
        }
    return found


async def _members(fleet: Fleet, stream: str) -> list[list[Any]]:
    return await fleet.command("XINFO", "CONSUMERS", stream, GROUP)


async def records(fleet: Fleet) -> list[str]:
    return [name.decode() for name in await fleet.command("HKEYS", fleet.keys.consumers)]


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("kept", ["nothing", "record", "lease", "grave"])
async def test_what_a_consumer_holds_whose_traces_are_incomplete_runs_elsewhere(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """A late read, a data set that went back in time, a command that arrived after the removal: each leaves another part behind."""
    monkeypatch.setattr(consumer_sweep, "SWEEP_S", 0.2)
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(echo))
        stream = fleet.keys.stream("echo", "n")
        life.runtime.pause()
        await life.runtime._fetcher.quiet()
        job_id = await fleet.submit("echo")
        await fleet.command("XREADGROUP", "GROUP", GROUP, "late", "COUNT", 1, "STREAMS", stream, ">")
        match kept:
            case "record":
                record = await fleet.command("HGET", fleet.keys.consumers, life.consumer)
                await fleet.command("HSET", fleet.keys.consumers, "late", record)
            case "lease":
                await fleet.command("ZADD", fleet.keys.leases, 1, "late")
            case "grave":
                await fleet.command("ZADD", fleet.keys.graves, 1, "late")
            case _:
                pass
        life.runtime.resume()
        await fleet.scheduler("d1")
        assert await fleet.value(job_id, 10) == 1
        assert len(life.board.starts) == 1

        async def forgotten() -> bool:
            left = await consumers(fleet, "echo") | set(await records(fleet))
            for key in (fleet.keys.leases, fleet.keys.graves):
                left |= {name.decode() for name in await fleet.command("ZRANGE", key, 0, -1)}
            return left == {life.consumer}

        await fleet.until(forgotten, 10, "nothing to be left of it")
        assert await fleet.leaks() == []


@pytest.mark.usefixtures("short_leases")
async def test_nobody_is_reaped_for_an_outage_of_the_broker(own_server: Server, namespace: str) -> None:
    """All leases end while the broker is away; each host first gets one lease's time to renew its own."""
    async with Fleet(own_server.url, namespace) as fleet:
        await fleet.scheduler("d1")
        await fleet.scheduler("d2")
        lives = [await fleet.worker(task(sleeper), daemon=daemon) for daemon in ("d1", "d2")]
        consumers = [life.consumer for life in lives]
        jobs = [await fleet.submit("sleeper", wait_s=2.5 * LEASE_S) for _ in range(4)]
        await fleet.until(lambda: sum(len(life.board.cells) for life in lives) == 4)
        await asyncio.to_thread(own_server.stop)
        await passed(fleet, 1.5 * LEASE_S)
        await asyncio.to_thread(own_server.start)
        await fleet.reachable()
        assert [await fleet.value(job_id) for job_id in jobs] == [1] * 4
        assert [life.consumer for life in lives] == consumers
        assert sum(len(life.board.starts) for life in lives) == 4


@pytest.mark.usefixtures("short_leases")
async def test_a_new_scheduler_waits_one_lease_before_it_judges_others(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(sleeper), daemon="d1")
        job_id = await fleet.submit("sleeper")
        await running(fleet, life, job_id)
        await fleet.command("ZADD", fleet.keys.leases, 1, life.consumer)
        begun = time.monotonic()
        await fleet.scheduler("d2")

        async def reaped() -> bool:
            return await fleet.command("ZSCORE", fleet.keys.leases, life.consumer) is None

        await fleet.until(reaped)
        assert time.monotonic() - begun >= LEASE_S


@pytest.mark.usefixtures("short_leases")
async def test_one_that_was_reaped_by_mistake_comes_back_under_a_new_name(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d2")
        life = await fleet.worker(task(sleeper), task(echo), daemon="d1")  # nobody beats for d1
        first = life.consumer
        job_id = await fleet.submit("sleeper")
        await running(fleet, life, job_id)
        await fleet.until(lambda: life.consumer != first)
        await fleet.scheduler("d1")
        assert (await fleet.run("echo")).status is JobStatus.DONE
        await running(fleet, life, job_id)
        assert len(life.board.starts) >= 2


@pytest.mark.usefixtures("short_leases")
async def test_a_lease_found_missing_is_told(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1")
        life = await fleet.worker(task(echo))
        await passed(fleet, LEASE_S / 2)
        gone = life.consumer
        await fleet.command("ZREM", fleet.keys.leases, gone)
        await fleet.until(lambda: gone in fleet.lost)
        assert (await fleet.run("echo")).status is JobStatus.DONE
        await fleet.until(lambda: life.consumer != gone)


def _stepped(directory: Path) -> tuple[SteppedClock, Server]:
    """A server whose clock can be stepped. Valkey's build reads the clock in a way that a preloaded library doesn't see."""
    clock = SteppedClock(directory)
    try:
        server = Server("redis")
    except NoServerError as error:
        pytest.skip(str(error))
    server.environment = clock.environment
    return clock, server


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("step_s", [-3600, -15, 15, 3600])
async def test_a_step_of_the_server_s_clock_takes_nothing_from_the_living(step_s: int, tmp_path: Path) -> None:
    clock, server = _stepped(tmp_path)
    with server:
        async with Fleet(server.url, "default") as fleet:
            schedulers = [await fleet.scheduler(daemon) for daemon in ("d1", "d2")]
            lives = [await fleet.worker(task(sleeper), daemon=daemon) for daemon in ("d1", "d2")]
            consumers = [life.consumer for life in lives]
            jobs = [await fleet.submit("sleeper", wait_s=3 * LEASE_S) for _ in range(4)]
            await fleet.until(lambda: sum(len(life.board.cells) for life in lives) == 4)
            await passed(fleet, LEASE_S / 2)
            term = max(scheduler.epoch for scheduler in schedulers)
            before_s = (await fleet.command("TIME"))[0]
            clock.step(step_s)
            after_s = (await fleet.command("TIME"))[0]
            assert abs(int(after_s) - int(before_s) - step_s) < 5, "the step is seen by the server"
            assert [await fleet.value(job_id, 20) for job_id in jobs] == [1] * 4
            assert [life.consumer for life in lives] == consumers
            assert sum(len(life.board.starts) for life in lives) == 4
            assert max(scheduler.epoch for scheduler in schedulers) == term, "the leadership stayed where it was"


@pytest.mark.usefixtures("short_leases")
async def test_a_leader_that_dies_beside_a_clock_that_was_set_back_is_missed(tmp_path: Path) -> None:
    """Its leases and its leadership lie an hour ahead, and end like any other."""
    clock, server = _stepped(tmp_path)
    with server:
        async with Fleet(server.url, "default") as fleet:
            first = await fleet.scheduler("d1")
            dead = await fleet.worker(task(sleeper), daemon="d1")
            job_id = await fleet.submit("sleeper")
            await running(fleet, dead, job_id)
            await fleet.until(lambda: first.leader)
            survivor = await fleet.worker(task(sleeper), daemon="d2")
            second = await fleet.scheduler("d2")
            await fleet.until(lambda: second.epoch == first.epoch)
            await dead.die()
            first._link.abort()
            first._listener._link.abort()
            _, _, life = fleet._schedulers.pop(0)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            clock.step(-3600)
            await running(fleet, survivor, job_id)
            await fleet.until(lambda: second.leader)


async def test_a_daemon_s_former_consumers_are_taken_back_at_its_start(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(sleeper), daemon="d1")
        other = await fleet.worker(task(sleeper), daemon="d2")
        jobs = [await fleet.submit("sleeper") for _ in range(4)]
        await fleet.until(lambda: len(life.board.cells) + len(other.board.cells) == 4)
        mine, theirs = len(life.board.cells), len(other.board.cells)
        await life.die()
        fleet._alive["d1"].clear()
        await fleet.scheduler("d1", since_ms=time.time_ns() // 1_000_000)

        async def back() -> bool:
            return await fleet.command("XLEN", fleet.keys.stream("sleeper", "b")) == mine

        await fleet.until(back, 3)
        assert len(other.board.cells) == theirs
        assert len(jobs) == 4


@pytest.mark.usefixtures("short_leases")
async def test_a_former_consumer_that_is_renewed_is_another_s_and_so_is_our_id(redis_url: str, namespace: str) -> None:
    """Two daemons have one id: the state directory was copied while its file looked the same."""
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(sleeper), daemon="d1")
        await fleet.scheduler("d1")
        job_id = await fleet.submit("sleeper")
        await running(fleet, life, job_id)
        await passed(fleet, LEASE_S)
        renamed: list[str] = []
        alive = fleet._alive.pop("d1")
        copy = await fleet.scheduler("d1", since_ms=time.time_ns() // 1_000_000, since_s=time.monotonic() - LEASE_S / 2)
        fleet._alive["d1"] = alive
        copy.on_renamed = renamed.append
        await fleet.until(lambda: renamed)
        await passed(fleet, 1.5 * LEASE_S)
        assert len(life.board.starts) == 1
        assert life.runtime.running_ids == [job_id]
        assert len(renamed) == 1
        assert sum(one.leader for _, one, _ in fleet._schedulers) == 1, "they don't take the leadership from each other"


# --- the leadership and crons


class Run(NamedTuple):
    """Unix seconds: what the clock showed when the job ran, and when it was due."""

    at: float
    tick: float


def cron(ran: list[Run], spec: CronSpec = EVERY_SECOND, name: str = "tidy") -> TaskSpec:
    async def tidy() -> None:
        meta = CURRENT.get().meta
        assert meta is not None
        tick_ms = meta.tick_ms
        assert tick_ms is not None
        ran.append(Run(time.time(), tick_ms / 1000))

    return task(tidy, name, cron=spec)


async def test_a_tick_fires_on_time_and_once_though_many_could_lead(redis_url: str, namespace: str) -> None:
    ran: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        schedulers = [await fleet.scheduler(f"d{number}") for number in range(3)]
        await fleet.worker(cron(ran))
        await fleet.until(lambda: len(ran) >= 3)
        assert len({run.tick for run in ran}) == len(ran)
        assert min(run.at - run.tick for run in ran) < 0.5, "on time"
        assert sum(scheduler.leader for scheduler in schedulers) == 1


async def test_two_who_both_believe_to_lead_fire_each_tick_once(redis_url: str, namespace: str) -> None:
    ran: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        first, second = await fleet.scheduler("d1"), await fleet.scheduler("d2")
        await fleet.worker(cron(ran))
        await fleet.until(lambda: first.leader or second.leader)
        begun, seen = time.monotonic(), len(ran)
        while len(ran) < seen + 2 or time.monotonic() - begun < 2.2:
            term = max(first.epoch, second.epoch)
            for one in (first, second):
                one.leader, one.epoch = True, term
                one._crons.wake()
            await passed(fleet, 0.05)
        ticks = [run.tick for run in ran[seen:]]
        assert len(ticks) == len(set(ticks))


async def test_the_first_daemon_s_scheduler_leads_as_soon_as_its_worker_registers(
    redis_url: str, namespace: str
) -> None:
    """However long it has waited for that: a second daemon that starts then finds a leader."""
    async with Fleet(redis_url, namespace) as fleet:
        first = await fleet.scheduler("d1")
        await passed(fleet, 2.0)  # its tries are a second apart by now
        await fleet.worker(task(echo), daemon="d1")
        second = await fleet.scheduler("d2")
        await fleet.until(lambda: first.leader or second.leader)
        assert first.leader
        assert not second.leader


@pytest.mark.usefixtures("short_leases")
async def test_another_host_leads_when_the_leader_is_gone(redis_url: str, namespace: str) -> None:
    ran: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        first = await fleet.scheduler("d1")
        await fleet.worker(cron(ran), daemon="d1")
        await fleet.until(lambda: first.leader and ran)
        second = await fleet.scheduler("d2")
        second.alive({fleet.workers[0].consumer})
        _, _, life = fleet._schedulers[0]
        first._link.abort()
        first._listener._link.abort()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        fleet._schedulers.pop(0)
        died, seen = time.time(), len(ran)
        await fleet.until(lambda: second.leader and len(ran) > seen + 1)
        assert second.epoch == first.epoch + 1 or second.epoch > first.epoch
        assert ran[seen].at - died < 3.5 * PATIENCE
        assert len({run.tick for run in ran}) == len(ran)


@pytest.mark.usefixtures("short_leases")
async def test_a_cron_that_left_the_code_stops(redis_url: str, namespace: str) -> None:
    ran: list[Run] = []
    stays: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        old, kept = cron(ran, name="tidy"), cron(stays, name="kept")
        await fleet.scheduler("d1", old, kept)
        life = await fleet.worker(old, kept)
        await fleet.until(lambda: ran and stays)
        await life.stop()
        await fleet.no_scheduler()
        await fleet.worker(kept, generation_ms=2)
        await fleet.scheduler("d1", kept, generation_ms=2)

        async def gone() -> bool:
            return await fleet.command("HKEYS", fleet.keys.crons) == [b"kept"]

        await fleet.until(gone)
        before, queued = len(stays), await fleet.lengths("tidy")
        await fleet.until(lambda: len(stays) > before)
        assert await fleet.lengths("tidy") == queued, "what it fired until then may be queued still"


async def test_a_cron_that_nobody_has_any_more_lapses(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cron_loop, "LAPSE_MS", 300)
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(cron([]))
        await life.stop()
        await fleet.scheduler("d2")
        await passed(fleet, 1.0)
        before = await fleet.lengths("tidy")
        await passed(fleet, 1.3)
        assert await fleet.lengths("tidy") == before


async def test_a_leader_fires_crons_of_services_it_has_never_seen(redis_url: str, namespace: str) -> None:
    ran: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d9", service="another")
        await fleet.worker(cron(ran), daemon="d1")
        await fleet.until(lambda: ran, 3)


@pytest.mark.parametrize(
    ("policy", "count"), [(MissedRunPolicy.LATEST_ONLY, 1), (MissedRunPolicy.CATCH_UP, 4), (MissedRunPolicy.SKIP, 0)]
)
async def test_ticks_that_were_missed(redis_url: str, namespace: str, policy: MissedRunPolicy, count: int) -> None:
    ran: list[Run] = []
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(cron(ran, CronSpec("0 0 * * *", missed=policy)))
        day_ms = 24 * 3600 * 1000
        now_ms = time.time_ns() // 1_000_000
        midnight_ms = now_ms // day_ms * day_ms
        if now_ms - midnight_ms < 70_000:
            pytest.skip("midnight UTC has only just passed")
        await fleet.command("HSET", fleet.keys.cursors, "tidy", midnight_ms - 3 * day_ms - 1)
        await fleet.scheduler("d1")

        async def moved() -> bool:
            cursor = int(await fleet.command("HGET", fleet.keys.cursors, "tidy"))
            return cursor >= midnight_ms

        await fleet.until(moved)
        await fleet.until(lambda: len(ran) >= count)
        await fleet.until(lambda: not fleet.workers[0].runtime._finisher.unconfirmed)
        assert len(ran) == count
        assert await fleet.leaks() == []


async def test_the_scheduler_starts_before_anybody_registered(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        one = await fleet.scheduler("d1")
        await passed(fleet, 0.3)
        assert not one.leader
        await fleet.worker(task(echo))
        assert (await fleet.run("echo", of={"delay_s": 0.05}, timeout_s=3)).status is JobStatus.DONE
        await fleet.until(lambda: one.leader, 3)
