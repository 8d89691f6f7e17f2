"""A worker dies: its jobs go to others, the guilty are charged, found and buried."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.fleet import Fleet, Life, task
from tests.support.waiting import PATIENCE, given
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import Submission
from upnext.engine.scheduler.reaper import DeathNotice


async def busy(fleet: Fleet, life: Life, count: int) -> None:
    await fleet.until(lambda: len(life.board.cells) == count, what=f"{count} jobs to have started")


async def test_its_job_starts_on_a_sibling_at_once(redis_url: str, namespace: str) -> None:
    lives: list[str] = []

    async def ship() -> str:
        lives.append("started")
        if len(lives) == 1:
            await asyncio.sleep(60)
        return "done"

    async with Fleet(redis_url, namespace) as fleet:
        first = await fleet.worker(task(ship))
        await fleet.scheduler()
        job_id = await fleet.submit("ship")
        await busy(fleet, first, 1)
        await fleet.worker(task(ship))
        loop = asyncio.get_running_loop()
        notice = await first.die()
        died = loop.time()
        fleet.report_dead(notice)
        await fleet.until(lambda: len(lives) == 2, 5)
        assert loop.time() - died < 1.0 * PATIENCE
        outcome = await fleet.broker.wait(job_id, 30)
        assert (outcome.status, outcome.crashes, outcome.attempt) == (JobStatus.DONE, 1, 1)
        await fleet.until(lambda: notice.consumer in fleet.reaped)
        assert (await fleet.stats())["ship:crashes"] == 1


async def test_what_it_had_only_fetched_is_not_charged(redis_url: str, namespace: str) -> None:
    async def ship(number: int) -> int:
        await asyncio.sleep(0.001 if number else 60)
        return number

    async with Fleet(redis_url, namespace) as fleet:
        first = await fleet.worker(task(ship), concurrency=1, prefetch=10)
        await fleet.scheduler()
        guilty = await fleet.submit("ship", number=0)
        await busy(fleet, first, 1)
        others = [await fleet.submit("ship", number=number) for number in range(1, 6)]
        notice = await first.die()
        fleet.report_dead(notice)
        await fleet.worker(task(ship), concurrency=2)
        for job_id in others:
            assert (await fleet.broker.wait(job_id, 30)).crashes == 0
        await fleet.until(lambda: any(start.job_id == guilty for start in fleet.workers[1].board.starts))


async def test_a_job_whose_end_was_not_recorded_is_charged(redis_url: str, namespace: str) -> None:
    """It may be what ended the process. One whose end was recorded has nothing to do with it."""

    async def ship(number: int) -> int:
        await asyncio.sleep(60 if number else 0)
        return number

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        first = await fleet.worker(task(ship))
        recorded = await fleet.submit("ship", number=0)
        assert (await fleet.broker.wait(recorded, 30)).status is JobStatus.DONE
        guilty = await fleet.submit("ship", number=1)
        await busy(fleet, first, 1)
        notice = await first.die()
        [done] = [start for start in first.board.starts if start.job_id == recorded]
        fleet.report_dead(replace(notice, started=(), ended=(done, *notice.started)))
        await fleet.until(lambda: notice.consumer in fleet.reaped)
        assert (await fleet.stats())["ship:crashes"] == 1
        assert await fleet.lengths("ship") == "b1", "alone, it is no suspect among others"
        meta = await fleet.command("XRANGE", fleet.keys.stream("ship", "b"), "-", "+")
        assert guilty.encode() in b" ".join(meta[0][1])


async def test_a_job_that_ended_beside_one_that_runs_makes_both_suspects(redis_url: str, namespace: str) -> None:
    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        first = await fleet.worker(task(ship), concurrency=2)
        await fleet.submit("ship")
        await fleet.submit("ship")
        await busy(fleet, first, 2)
        notice = await first.die()
        runs, ended = notice.started
        fleet.report_dead(replace(notice, started=(runs,), ended=(ended,), suspects=1))
        await fleet.until(lambda: notice.consumer in fleet.reaped)
        assert await fleet.lengths("ship") == "x2"


async def test_it_is_buried_at_max_crashes_and_never_runs_again(redis_url: str, namespace: str) -> None:
    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        job_id = ""
        for round_ in range(2):
            life = await fleet.worker(task(ship, max_crashes=2))
            if not round_:
                job_id = await fleet.submit("ship", of={"idempotency_key": "k"})
            await busy(fleet, life, 1)
            fleet.report_dead(await life.die("signal:SIGSEGV"))
        outcome = await fleet.broker.wait(job_id, 30)
        assert (outcome.status, outcome.reason, outcome.crashes) == (JobStatus.DEAD, FailureReason.CRASH, 2)
        assert outcome.cause == "signal:SIGSEGV"
        again = await fleet.submit("ship", of={"idempotency_key": "k"})
        assert again != job_id


async def test_a_repeated_notice_is_acknowledged_and_charges_once(redis_url: str, namespace: str) -> None:
    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        scheduler = await fleet.scheduler()
        life = await fleet.worker(task(ship))
        await fleet.submit("ship")
        await busy(fleet, life, 1)
        notice = await life.die()
        for _ in range(3):
            scheduler.died(notice)
        await fleet.until(lambda: notice.consumer in fleet.reaped)
        scheduler.died(notice)
        await fleet.until(lambda: fleet.reaped.count(notice.consumer) >= 2)
        assert (await fleet.stats()) == {"ship:crashes": 1}
        successor = await fleet.scheduler()
        successor.died(notice)
        await fleet.until(lambda: fleet.reaped.count(notice.consumer) >= 3)
        assert (await fleet.stats()) == {"ship:crashes": 1}


async def test_a_notice_about_nobody_is_acknowledged(redis_url: str, namespace: str) -> None:
    async def ship() -> None: ...

    async with Fleet(redis_url, namespace) as fleet:
        scheduler = await fleet.scheduler()
        await fleet.worker(task(ship))
        scheduler.died(DeathNotice("nobody", "exit:1", True))
        await fleet.until(lambda: "nobody" in fleet.reaped)


async def test_a_notice_that_came_while_the_broker_was_unknown(redis_url: str, namespace: str) -> None:
    """The scheduler starts with notices from before: nobody has registered yet, or it doesn't know the epoch."""

    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        await fleet.submit("ship")
        await busy(fleet, life, 1)
        notice = await life.die()
        scheduler = await fleet.scheduler()
        scheduler.died(notice)
        await fleet.until(lambda: notice.consumer in fleet.reaped)
        assert await fleet.lengths("ship") == "b1"
        assert await fleet.stats() == {"ship:crashes": 1}


async def test_several_suspects_run_alone_and_one_after_the_other(redis_url: str, namespace: str) -> None:
    alone: list[bool] = []
    running: set[int] = set()
    first_life = True

    async def ship(number: int) -> int:
        if first_life:
            await asyncio.sleep(60)
        running.add(number)
        await asyncio.sleep(0.02)
        alone.append(len(running) == 1)
        running.discard(number)
        return number

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(ship), concurrency=4)
        jobs = [await fleet.submit("ship", number=number) for number in range(4)]
        await busy(fleet, life, 4)
        fleet.report_dead(await life.die())
        first_life = False
        await fleet.until(lambda: fleet.reaped)
        assert await fleet.lengths("ship") == "x4"
        later = [await fleet.submit("ship", number=number) for number in range(10, 20)]
        await fleet.worker(task(ship), concurrency=4)
        assert [await fleet.value(job_id) for job_id in jobs] == [0, 1, 2, 3]
        for job_id in jobs:
            assert (await fleet.broker.wait(job_id, 30)).crashes == 0
        suspects = [start for start in fleet.workers[1].board.starts if start.lane == "x"]
        assert len(suspects) == 4
        assert [await fleet.value(job_id) for job_id in later] == list(range(10, 20))
        assert await fleet.leaks() == []


async def test_forty_nine_innocent_and_one_guilty(redis_url: str, namespace: str) -> None:
    """The worker dies whenever the guilty one runs; at the end it alone is buried and nobody else was charged."""
    struck: asyncio.Queue[int] = asyncio.Queue()
    gate = asyncio.Event()

    async def ship(number: int) -> int:
        await gate.wait()
        if number == 17:
            struck.put_nowait(number)
            await asyncio.sleep(60)
        return number

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        spec = task(ship, max_crashes=3)
        jobs = await fleet.broker.submit_many([Submission("ship", b'{"number":%d}' % n) for n in range(50)])
        life = await fleet.worker(spec, concurrency=50)
        await busy(fleet, life, 50)
        fleet.report_dead(await life.die("signal:SIGSEGV"))
        gate.set()
        for _ in range(3):
            life = await fleet.worker(spec, concurrency=50)
            async with asyncio.timeout(given(8)):
                await struck.get()
            fleet.report_dead(await life.die("signal:SIGSEGV"))
        await fleet.worker(spec, concurrency=50)
        for number, job_id in enumerate(jobs):
            outcome = await fleet.broker.wait(job_id, 30)
            if number == 17:
                assert (outcome.status, outcome.crashes) == (JobStatus.DEAD, 3)
            else:
                assert (outcome.status, outcome.crashes) == (JobStatus.DONE, 0)
        assert await fleet.leaks() == []


async def test_a_busy_sibling_takes_the_suspects_once_it_is_idle(redis_url: str, namespace: str) -> None:
    first_life = True
    release = asyncio.Event()

    async def ship() -> int:
        if first_life:
            await asyncio.sleep(60)
        return 1

    async def other() -> None:
        await release.wait()

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(ship))
        jobs = [await fleet.submit("ship") for _ in range(2)]
        await busy(fleet, life, 2)
        sibling = await fleet.worker(task(ship), task(other), concurrency=4)
        await fleet.submit("other")
        await busy(fleet, sibling, 1)
        fleet.report_dead(await life.die())
        first_life = False
        await fleet.until(lambda: fleet.reaped)
        assert await fleet.lengths("ship") == "x2"
        release.set()
        assert [await fleet.value(job_id, 1.5) for job_id in jobs] == [1, 1]


async def test_a_suspect_that_waits_for_its_child_does_not_hold_its_worker_up(redis_url: str, namespace: str) -> None:
    """Alone in its process, but while it waits it gives that up: its child may run here."""
    fleet = Fleet(redis_url, namespace)
    first_life = True

    async def parent() -> int:
        from upnext.engine.attempt import CURRENT

        if first_life:
            await asyncio.sleep(60)
        attempt = CURRENT.get()
        child = await fleet.submit("child", of={"parent_id": attempt.job_id, "root_id": attempt.job_id})
        async with attempt.suspended():
            return await fleet.value(child)

    async def child() -> int:
        return 7

    async with fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(parent), task(child), concurrency=2)
        jobs = [await fleet.submit("parent") for _ in range(2)]
        await busy(fleet, life, 2)
        fleet.report_dead(await life.die())
        first_life = False
        await fleet.until(lambda: fleet.reaped)
        await fleet.worker(task(parent), task(child), concurrency=2)
        assert [await fleet.value(job_id) for job_id in jobs] == [7, 7]
        assert await fleet.leaks() == []


async def test_a_worker_takes_others_after_a_suspect_that_was_cancelled(redis_url: str, namespace: str) -> None:
    first_life = True
    began: list[int] = []

    async def ship(number: int) -> int:
        began.append(number)
        if first_life or number < 10:
            await asyncio.sleep(60)
        return number

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        life = await fleet.worker(task(ship), concurrency=2)
        jobs = [await fleet.submit("ship", number=number) for number in range(2)]
        await busy(fleet, life, 2)
        fleet.report_dead(await life.die())
        first_life = False
        await fleet.until(lambda: fleet.reaped)
        second = await fleet.worker(task(ship), concurrency=2)
        other = await fleet.submit("ship", number=10)
        for _ in jobs:
            await busy(fleet, second, 1)
            [running] = second.runtime.running_ids
            assert await fleet.broker.cancel(running)
            await fleet.until(lambda gone=running: gone not in second.runtime.running_ids)
        assert await fleet.value(other, 3) == 10
        assert await fleet.leaks() == []


async def test_a_drained_worker_with_a_suspect_in_hand_works_on_after_resume(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), concurrency=2)
        runtime = life.runtime
        # the moment between the fetch of a suspect and its start, made to last
        runtime._executor.wake_runner = lambda: None
        meta = b'{"i":"ship:n1-0","l":"n","s":1}'
        await fleet.command("XADD", fleet.keys.stream("ship", "x"), "*", "p1", b"{}", "m", meta)
        runtime._fetcher.wake_for_all()
        await fleet.until(lambda: bool(runtime._executor.held))
        await runtime.drain()
        del runtime._executor.wake_runner
        runtime.resume()
        assert await fleet.value(await fleet.submit("ship"), 4) == 1
