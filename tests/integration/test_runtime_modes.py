"""Pause, drain, resume, stop; and jobs that were fetched but can't start here soon."""

from __future__ import annotations

import asyncio
import json
import time

from tests.support.fleet import Fleet, Life, task
from tests.support.waiting import PATIENCE
from upnext.core.lanes import Lane
from upnext.core.submission import Submission
from upnext.engine.calls import admin
from upnext.engine.mode import Mode


async def started(fleet: Fleet, life: Life, count: int) -> None:
    await fleet.until(lambda: len(life.board.cells) == count)


async def test_pause_takes_no_more_and_lets_the_running_end(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()

    async def ship() -> int:
        await release.wait()
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        running = await fleet.submit("ship")
        await started(fleet, life, 1)
        life.runtime.pause()
        await life.runtime._fetcher.quiet()
        waiting = await fleet.submit("ship")
        release.set()
        assert await fleet.value(running) == 1
        assert await fleet.pending("ship") == 0
        assert (await fleet.standing(waiting)).outcome is None
        life.runtime.resume()
        assert await fleet.value(waiting) == 1


async def test_drain_hands_back_what_is_unstarted_and_waits_for_the_running(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()

    async def ship(number: int) -> int:
        if number == 0:
            await release.wait()
        return number

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), concurrency=1, prefetch=10)
        jobs = [await fleet.submit("ship", number=number) for number in range(6)]
        await started(fleet, life, 1)
        drain = asyncio.create_task(life.runtime.drain())
        sibling = await fleet.worker(task(ship))
        assert [await fleet.value(job_id, 3) for job_id in jobs[1:]] == [1, 2, 3, 4, 5]
        assert not drain.done()
        release.set()
        await asyncio.wait_for(drain, 30)
        assert await fleet.value(jobs[0]) == 0
        assert await fleet.pending("ship") == 0
        assert life.runtime.mode is Mode.DRAINING
        late = await fleet.submit("ship", number=9)
        assert await fleet.value(late) == 9
        assert any(start.job_id == late for start in sibling.board.starts)
        assert await fleet.leaks() == []


async def test_resume_reverses_a_drain_that_still_waits(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()

    async def ship(number: int) -> int:
        if number == 0:
            await release.wait()
        return number

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), concurrency=2)
        first = await fleet.submit("ship", number=0)
        await started(fleet, life, 1)
        drain = asyncio.create_task(life.runtime.drain())
        await fleet.until(lambda: life.runtime.mode is Mode.DRAINING)
        await life.runtime._fetcher.quiet()
        life.runtime.resume()
        assert await fleet.value(await fleet.submit("ship", number=5)) == 5
        release.set()
        assert await fleet.value(first) == 0
        await asyncio.wait_for(drain, 30)


async def test_an_idle_worker_drains_and_stops_at_once(redis_url: str, namespace: str) -> None:
    async def ship() -> None: ...

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        begun = time.monotonic()
        for _ in range(5):
            await asyncio.wait_for(life.runtime.drain(), 30)
            life.runtime.resume()
        assert time.monotonic() - begun < 1.5 * PATIENCE
        assert await life.stop() == []
        assert await fleet.command("HLEN", fleet.keys.consumers) == 0
        assert await fleet.command("EXISTS", fleet.keys.graves) == 0


async def test_stop_gives_up_at_its_deadline_and_the_job_runs_elsewhere(redis_url: str, namespace: str) -> None:
    lives: list[int] = []

    async def ship() -> int:
        lives.append(1)
        if len(lives) == 1:
            await asyncio.sleep(60)
        return len(lives)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        job_id = await fleet.submit("ship")
        await started(fleet, life, 1)
        assert await life.stop(0.1) == [job_id]
        await fleet.worker(task(ship))
        assert await fleet.value(job_id) == 2
        outcome = (await fleet.standing(job_id)).outcome
        assert outcome is not None
        assert outcome.crashes == 0
        assert await fleet.leaks() == []


async def test_a_cancelled_run_says_goodbye_too(redis_url: str, namespace: str) -> None:
    async def ship() -> None:
        await asyncio.sleep(60)

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), concurrency=1, prefetch=1000)
        await fleet.broker.submit_many([Submission("ship", b"{}")] * 900)
        await started(fleet, life, 1)
        life.task.cancel()
        await asyncio.gather(life.task, return_exceptions=True)
        assert await fleet.pending("ship") == 0
        assert await fleet.command("HLEN", fleet.keys.consumers) == 0


async def test_a_job_that_comes_right_after_the_goodbye_is_not_fed_to_the_dead(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        await fleet.until(lambda: life.runtime._fetcher._connection.blocked is not None)
        leave = life.runtime._membership.leave
        late: list[str] = []

        async def leave_then_submit() -> None:
            await leave()
            late.append(await fleet.submit("ship"))

        life.runtime._membership.leave = leave_then_submit
        life.task.cancel()
        await asyncio.gather(life.task, return_exceptions=True)
        assert await fleet.pending("ship") == 0
        await fleet.worker(task(ship))
        assert await fleet.value(late[0], 3) == 1


async def test_nothing_is_left_behind_by_workers_that_come_and_go_under_load(redis_url: str, namespace: str) -> None:
    """A read that waits on the broker while its worker leaves must not be fed a job that nobody will ever run."""
    ran: list[int] = []
    producing = True

    async def ship(number: int) -> None:
        ran.append(number)

    async with Fleet(redis_url, namespace) as fleet:
        submitted = 0

        async def produce() -> None:
            nonlocal submitted
            while producing:
                await fleet.submit("ship", number=submitted)
                submitted += 1

        load = asyncio.create_task(produce())
        for number in range(25):
            life = await fleet.worker(task(ship, result_ttl_s=0.0))
            if number % 2:
                await life.stop()
            else:
                life.task.cancel()
                await asyncio.gather(life.task, return_exceptions=True)
        producing = False
        await load
        assert await fleet.pending("ship") == 0
        await fleet.worker(task(ship, result_ttl_s=0.0))
        await fleet.until(lambda: len(set(ran)) == submitted)
        assert await fleet.leaks() == []


async def test_a_long_job_makes_no_other_wait_while_a_sibling_is_free(redis_url: str, namespace: str) -> None:
    async def ship(wait_s: float) -> None:
        await asyncio.sleep(wait_s)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), concurrency=1, prefetch=20)
        await fleet.worker(task(ship), concurrency=1, prefetch=20)
        jobs = await fleet.broker.submit_many(
            [Submission("ship", b'{"wait_s":60}'), *[Submission("ship", b'{"wait_s":0.005}')] * 30]
        )
        begun = time.monotonic()
        await asyncio.gather(*(fleet.broker.wait(job_id, 30) for job_id in jobs[1:]))
        assert time.monotonic() - begun < 2.5 * PATIENCE


async def test_jobs_that_were_handed_back_before_wait_behind_no_long_job_either(redis_url: str, namespace: str) -> None:
    ends = {name: asyncio.Event() for name in ("first", "second")}

    async def ship(until: str | None) -> None:
        if until:
            await ends[until].wait()

    def job(until: str | None) -> Submission:
        return Submission("ship", json.dumps({"until": until}).encode())

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), concurrency=1, prefetch=20)
        first, second, *quick = await fleet.broker.submit_many([job("first"), job("second"), *[job(None)] * 5])
        back = fleet.keys.stream("ship", Lane.BACK)
        await fleet.until(lambda: fleet.command("XLEN", back), what="six jobs to be handed back")
        ends["first"].set()
        await fleet.broker.wait(first, 30)
        await fleet.worker(task(ship), concurrency=1, prefetch=20)
        await asyncio.gather(*(fleet.broker.wait(job_id, 30) for job_id in quick))
        ends["second"].set()
        await fleet.broker.wait(second, 30)


async def test_a_task_that_is_paused_everywhere(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async def pack() -> int:
        return 2

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(ship), task(pack))
        await fleet.worker(task(ship), daemon="d2")
        assert await fleet.broker.run(admin.pause_task(fleet.keys, "ship")) == admin.CHANGED
        await fleet.until(
            lambda: all(not any(":s:ship:" in s for s in w.runtime._fetcher._streams) for w in fleet.workers)
        )
        job_id = await fleet.submit("ship")
        assert (await fleet.run("pack")).value == b"2"
        assert await fleet.pending("ship") == 0
        await fleet.broker.run(admin.resume_task(fleet.keys, "ship"))
        assert await fleet.value(job_id, 3) == 1


async def test_a_worker_without_tasks_and_one_with_hundreds(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker()
        await fleet.worker(*(task(ship, f"ship{number}") for number in range(250)))
        for number in (0, 17, 249):
            assert (await fleet.run(f"ship{number}", timeout_s=3)).value == b"1"
            assert (await fleet.run(f"ship{number}", timeout_s=3, of={"priority": "high"})).value == b"1"
