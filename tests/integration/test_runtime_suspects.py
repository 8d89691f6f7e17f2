"""Suspects of a crash: run one at a time in a process of their own, or in turn with other jobs where there is only one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.support.fleet import Fleet, Life, task
from tests.support.waiting import PATIENCE, wait_until_async
from upnext.core.outcome import JobStatus
from upnext.core.suspects import OneAtATime, Suspects


class Work:
    """Tasks that note how many jobs of each kind are at work at once."""

    def __init__(self) -> None:
        self.first_life = True
        self.lasts_s = 0.02
        self.at_work = 0
        self.most_at_work = 0
        self.started: list[str] = []
        self.submitted: list[str] = []

    async def ship(self, number: int = 0) -> int:
        if self.first_life:
            await asyncio.sleep(60)
        return await self._run("ship", self.lasts_s, number)

    async def pack(self, number: int = 0) -> int:
        if self.first_life:
            await asyncio.sleep(60)
        return await self._run("pack", self.lasts_s, number)

    async def quick(self, number: int = 0) -> int:
        self.started.append("quick")
        await asyncio.sleep(0.01)
        return number

    async def _run(self, name: str, lasts_s: float, number: int) -> int:
        self.started.append(name)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(lasts_s)
        self.at_work -= 1
        return number


@asynccontextmanager
async def suspects(fleet: Fleet, work: Work, *jobs: str) -> AsyncGenerator[list[str]]:
    """A worker died while it ran these jobs. -> their ids"""
    life = await fleet.worker(task(work.ship), task(work.pack), concurrency=len(jobs))
    ids = [await fleet.submit(name, number=number) for number, name in enumerate(jobs)]
    await fleet.until(lambda: len(life.board.cells) == len(jobs))
    fleet.report_dead(await life.die())
    work.first_life = False
    await fleet.until(lambda: life.board and fleet.reaped)
    yield ids


async def keep_busy(fleet: Fleet, work: Work) -> None:
    """More `quick` jobs than anybody can run, until cancelled."""
    while True:
        if len(work.submitted) - work.started.count("quick") < 20:
            work.submitted += await asyncio.gather(*(fleet.submit("quick") for _ in range(50)))
        await asyncio.sleep(0.01)


async def test_a_worker_of_a_daemon_leaves_them_to_the_quarantine(redis_url: str, namespace: str) -> None:
    work = Work()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1", task(work.ship), task(work.pack))
        async with suspects(fleet, work, "ship", "ship", "ship"):
            await fleet.worker(task(work.ship), task(work.pack), suspects=Suspects.LEAVE)
            later = await fleet.submit("ship", number=9)
            assert await fleet.value(later) == 9
            assert await fleet.lengths("ship") == "x3"
            fleet.workers[-1].runtime._fetcher.reread()
            assert await fleet.value(await fleet.submit("ship", number=10)) == 10
            assert await fleet.lengths("ship") == "x3"


async def test_a_quarantine_runs_them_one_at_a_time_and_nothing_else(redis_url: str, namespace: str) -> None:
    work = Work()
    async with Fleet(redis_url, namespace) as fleet:
        scheduler = await fleet.scheduler("d1", task(work.ship), task(work.pack))
        changes: list[bool] = []
        scheduler.on_suspects = lambda: changes.append(scheduler.suspects)
        async with suspects(fleet, work, "ship", "ship", "pack") as ids:
            assert changes == [True]
            await fleet.submit("ship", number=9)
            tasks = (task(work.ship), task(work.pack))
            quarantine = await fleet.worker(*tasks, concurrency=1, suspects=Suspects.ONLY)
            for number, job_id in enumerate(ids):
                outcome = await fleet.broker.wait(job_id, 30)
                assert (outcome.status, outcome.crashes) == (JobStatus.DONE, 0), number
            assert (work.most_at_work, {start.lane for start in quarantine.board.starts}) == (1, {"x"})
            assert await fleet.lengths("ship") == "n1"
            await fleet.until(lambda: changes == [True, False], 8, what="the scheduler to find no more")


async def test_it_starts_them_at_once_beside_a_full_backlog(redis_url: str, namespace: str) -> None:
    """The others never run dry, and the quarantine is there before the crash as well as after it."""
    work = Work()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1", task(work.ship), task(work.pack), task(work.quick))
        tasks = (task(work.ship), task(work.pack), task(work.quick))
        await fleet.worker(*tasks, concurrency=2, suspects=Suspects.LEAVE)
        await fleet.worker(*tasks, concurrency=1, suspects=Suspects.ONLY)
        busy = asyncio.create_task(keep_busy(fleet, work))
        await wait_until_async(lambda: work.started.count("quick") > 20)
        loop = asyncio.get_running_loop()
        async with suspects_of_two(fleet, work):
            died = loop.time()
            await fleet.until(lambda: "ship" in work.started, 5)
            assert loop.time() - died < 0.2 * PATIENCE
            before = work.started.count("quick")
            await fleet.until(lambda: work.started.count("ship") == 2)
            await fleet.until(lambda: work.started.count("quick") > before + 20)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)


@asynccontextmanager
async def suspects_of_two(fleet: Fleet, work: Work) -> AsyncGenerator[None]:
    """As `suspects`, where others serve the same tasks: they are put there as a reaper does."""
    work.first_life = False
    for number in range(2):
        meta = b'{"i":"ship:n%d-1","l":"n","s":1,"d":"c1"}' % (number + 1)
        await fleet.command("XADD", fleet.keys.stream("ship", "x"), "*", "p1", b"{}", "m", meta)
    await fleet.command("SPUBLISH", fleet.keys.bell, "b")
    yield


async def test_of_all_workers_in_a_quarantine_process_one_runs_one(redis_url: str, namespace: str) -> None:
    work = Work()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1", task(work.ship), task(work.pack))
        async with suspects(fleet, work, "ship", "ship", "ship", "pack", "pack", "pack") as ids:
            process = OneAtATime()
            for one in (task(work.ship), task(work.pack)):
                await fleet.worker(one, concurrency=1, suspects=Suspects.ONLY, one_at_a_time=process)
            for number, job_id in enumerate(ids):
                assert await fleet.value(job_id) == number
            assert work.most_at_work == 1
            assert await fleet.leaks() == []


async def test_a_crash_alone_frees_the_others_at_once(redis_url: str, namespace: str) -> None:
    work = Work()
    work.lasts_s = 60
    async with Fleet(redis_url, namespace) as fleet:
        scheduler = await fleet.scheduler("d1", task(work.ship), task(work.pack))
        async with suspects(fleet, work, "ship", "ship", "ship", "pack"):
            tasks = (task(work.ship), task(work.pack))
            quarantine = await fleet.worker(*tasks, concurrency=1, suspects=Suspects.ONLY)
            await fleet.until(lambda: len(quarantine.board.cells) == 1)
            [guilty] = [cell.job_id for cell in quarantine.board.cells.values()]
            fleet.report_dead(await quarantine.die("signal:SIGSEGV"))
            await fleet.until(lambda: quarantine.board and len(fleet.reaped) == 2)
            lanes = {name: await fleet.lengths(name) for name in ("ship", "pack")}
            assert sorted(lanes.values()) in (["b1", "b2 x1"], ["b3", "x1"])
            assert (await fleet.command("HGET", fleet.keys.where, guilty)).startswith(b"x ")
            assert scheduler.suspects
            work.lasts_s = 0.02
            worker = await fleet.worker(*tasks, concurrency=4, suspects=Suspects.LEAVE)
            await fleet.until(lambda: worker.board.starts and len(worker.board.starts) == 3)
            again = await fleet.worker(*tasks, concurrency=1, suspects=Suspects.ONLY)
            assert (await fleet.broker.wait(guilty, 30)).crashes == 1
            assert [start.job_id for start in again.board.starts] == [guilty]
            assert await fleet.leaks() == []


async def test_one_that_fails_and_is_tried_again_is_no_suspect_any_more(redis_url: str, namespace: str) -> None:
    """It ended by itself, alone: it crashes nobody."""
    lives: list[str] = []
    first_life = True

    async def ship() -> None:
        if first_life:
            await asyncio.sleep(60)
        lives.append("run")
        if len(lives) <= 2:
            raise ValueError

    async with Fleet(redis_url, namespace) as fleet:
        one = task(ship, retries=1, retry_delay_s=0.05)
        await fleet.scheduler("d1", one)
        life: Life = await fleet.worker(one)
        jobs = [await fleet.submit("ship") for _ in range(2)]
        await fleet.until(lambda: len(life.board.cells) == 2)
        fleet.report_dead(await life.die())
        first_life = False
        quarantine = await fleet.worker(one, concurrency=1, suspects=Suspects.ONLY)
        await fleet.until(lambda: len(lives) == 2)
        worker = await fleet.worker(one, suspects=Suspects.LEAVE)
        for job_id in jobs:
            outcome = await fleet.broker.wait(job_id, 30)
            assert (outcome.status, outcome.attempt) == (JobStatus.DONE, 2)
        assert len(quarantine.board.starts) == len(worker.board.starts) == 2


async def test_a_single_process_takes_turns_although_it_is_never_idle(redis_url: str, namespace: str) -> None:
    work = Work()
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler("d1", task(work.ship), task(work.pack), task(work.quick))
        async with suspects(fleet, work, "ship", "ship", "ship") as ids:
            busy = asyncio.create_task(keep_busy(fleet, work))
            await fleet.until(lambda: work.submitted)
            await fleet.worker(task(work.ship), task(work.pack), task(work.quick), concurrency=3)
            for number, job_id in enumerate(ids):
                assert await fleet.value(job_id, 30) == number
            order = "".join(name[0] for name in work.started)
            assert order.count("s") == 3
            between = order.strip("q").strip("s").split("s") if "ss" not in order else []
            assert all(between), f"others had their turn between two suspects: {order}"
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
