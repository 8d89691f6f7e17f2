"""Who owns a job: its entry id says so, and what a former owner says later counts for nothing."""

from __future__ import annotations

import asyncio

import orjson

from tests.support.fleet import Fleet, task
from upnext.core import outcome
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import lease
from upnext.engine.worker.questions import Question


async def reap(fleet: Fleet, consumer: str, name: str) -> lease.Reaped:
    epoch = (await fleet.command("GET", fleet.keys.epoch)).decode()
    return await fleet.broker.run(lease.reap(fleet.keys, epoch, consumer=consumer, tasks=[name], final=True))


async def test_the_first_owner_ends_late_and_writes_nothing(redis_url: str, namespace: str) -> None:
    go = asyncio.Event()
    by: list[int] = []

    async def ship(number: int = 0) -> int:
        by.append(len(by))
        mine = by[-1]
        if mine == 0:
            try:
                await go.wait()
            except asyncio.CancelledError:
                await go.wait()  # it does not heed that it is to stop
        return mine

    async with Fleet(redis_url, namespace) as fleet:
        first = await fleet.worker(task(ship), concurrency=1)
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: by == [0])
        await reap(fleet, first.consumer, "ship")
        await fleet.worker(task(ship), daemon="d2")
        assert await fleet.value(job_id) == 1
        before = await fleet.command("GET", fleet.keys.result(job_id))
        go.set()
        await fleet.until(lambda: first.board.ends + len(first.board.cells) == 0 or not first.runtime.running_ids)
        await fleet.until(lambda: not first.runtime._finisher.unconfirmed)
        assert await fleet.command("GET", fleet.keys.result(job_id)) == before
        assert (await fleet.stats()) == {"ship:done": 1}
        assert await fleet.leaks() == []


async def test_one_that_was_reaped_stops_and_registers_anew(redis_url: str, namespace: str) -> None:
    stopped = asyncio.Event()

    async def ship() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.set()
            raise
        return 1

    async def quick() -> int:
        return 2

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), task(quick))
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: life.runtime.running_ids == [job_id])
        first = life.consumer
        await reap(fleet, first, "ship")
        await fleet.submit("quick")
        await asyncio.wait_for(stopped.wait(), 30)
        await fleet.until(lambda: life.consumer != first)
        assert orjson.loads((await fleet.run("quick")).value) == 2
        assert len(set(life.board.consumers)) == 2
        # nobody wrote an end: the job starts again, here
        await fleet.until(lambda: life.runtime.running_ids == [job_id])
        assert (await fleet.standing(job_id)).outcome is None


async def test_two_workers_share_ten_thousand_jobs_without_a_double(redis_url: str, namespace: str) -> None:
    runs: list[int] = []

    async def count(number: int) -> None:
        runs.append(number)
        if number % 100 == 0:
            await asyncio.sleep(0)

    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(count, result_ttl_s=0.0), concurrency=10)
        await fleet.worker(task(count, result_ttl_s=0.0), concurrency=10, daemon="d2")
        total = 10_000
        await fleet.broker.submit_many([Submission("count", b'{"number":%d}' % number) for number in range(total)])
        await fleet.until(lambda: len(runs) >= total)
        assert sorted(runs) == list(range(total))
        assert await fleet.leaks() == []
        assert await fleet.stats() == {"count:done": total}


async def test_an_end_whose_confirmation_was_lost_is_sent_again_and_counts_once(redis_url: str, namespace: str) -> None:
    release = asyncio.Event()

    async def ship() -> str:
        await release.wait()
        return "once"

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        job_id = await fleet.submit("ship")
        await fleet.until(lambda: life.runtime.running_ids == [job_id])
        client_id = life.runtime._broker.link.live.client_id  # type: ignore[union-attr]
        release.set()
        await fleet.command("CLIENT", "KILL", "ID", client_id)
        assert await fleet.value(job_id) == "once"
        assert await fleet.leaks() == []
        assert await fleet.stats() == {"ship:done": 1}


async def test_a_job_that_was_lost_on_its_way_comes_back(redis_url: str, namespace: str) -> None:
    """The broker delivered it, the reply never arrived: the pending list is compared after every broken read."""

    async def ship() -> int:
        return 5

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship))
        life.runtime.pause()
        await life.runtime._fetcher.quiet()
        job_id = await fleet.submit("ship")
        stream = fleet.keys.stream("ship", "n")
        assert await fleet.command("XREADGROUP", "GROUP", "w", life.consumer, "STREAMS", stream, ">")
        life.runtime._fetcher._open.ask(Question.PENDING)
        life.runtime.resume()
        assert await fleet.value(job_id) == 5
        assert await fleet.leaks() == []


async def test_another_namespace_is_another_world(redis_url: str, namespace: str) -> None:
    async def ship() -> int:
        return 1

    async with Fleet(redis_url, namespace) as fleet, Fleet(redis_url, namespace + "b") as other:
        await fleet.worker(task(ship))
        await other.submit("ship")
        assert (await fleet.run("ship")).status is JobStatus.DONE
        assert await other.lengths("ship") == "n1"
        raw = await fleet.command("KEYS", f"*{namespace}b*")
        assert raw == [Keys(namespace + "b").stream("ship", "n").encode()]
        assert outcome.JobStatus.DONE
