"""The broker goes back in time: what had ended since, and is known to have by a worker that lives, is not run again."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter

from tests.support.fleet import Fleet, task
from tests.support.servers import Server
from upnext.core.outcome import JobStatus


async def test_jobs_that_had_ended_end_again_and_are_not_run_again() -> None:
    """In every place that a job may be found in again: held, queued, to be retried, not promoted, handed back."""
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    async def ship(name: str, fails: int = 0) -> str:
        ran[name] += 1
        if not name.startswith("later"):
            await gate.wait()
        if ran[name] <= fails:
            raise ValueError("again")
        return name

    with Server(appendonly="yes", appendfsync="always") as server:
        async with Fleet(server.url, "default") as fleet:
            await fleet.scheduler("d1")
            await fleet.scheduler("d2")
            for daemon in ("d1", "d2"):
                await fleet.worker(task(ship, retries=2, retry_delay_s=0.05), daemon=daemon, concurrency=3)
            jobs = {name: await fleet.submit("ship", name=name) for name in (f"held-{number}" for number in range(6))}
            await fleet.until(lambda: ran.total() == 6, what="every slot to be taken")
            for name in (f"queued-{number}" for number in range(20)):
                jobs[name] = await fleet.submit("ship", name=name)
            for name in (f"flaky-{number}" for number in range(4)):
                jobs[name] = await fleet.submit("ship", name=name, fails=1)
            for name in (f"later-{number}" for number in range(5)):
                jobs[name] = await fleet.submit("ship", name=name, of={"delay_s": 1.5})
            log, kept = server.directory / "appendonlydir", server.directory / "kept"
            await asyncio.to_thread(shutil.copytree, log, kept)
            gate.set()
            for name, job_id in jobs.items():
                assert await fleet.value(job_id) == name
            await fleet.until(lambda: not any(life.runtime._finisher.unconfirmed for life in fleet.workers))
            before = Counter(ran)

            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(shutil.rmtree, log)
            await asyncio.to_thread(kept.rename, log)
            await asyncio.to_thread(server.start)
            await fleet.reachable()

            async def nothing_left() -> bool:
                return await fleet.lengths("ship") == "" and not await fleet.command("ZCARD", fleet.keys.delayed)

            await fleet.until(nothing_left, 20)
            outcomes = {name: await fleet.broker.wait(job_id, 10) for name, job_id in jobs.items()}
            assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(jobs, JobStatus.DONE)
            assert ran == before, "nothing ran again"
            assert (await fleet.stats())["ship:done"] == len(jobs)
            assert await fleet.leaks() == []


async def test_a_server_that_was_only_started_again_has_every_end(own_server: Server) -> None:
    ran: Counter[str] = Counter()

    async def ship(name: str) -> None:
        ran[name] += 1

    own_server.cli("CONFIG", "SET", "appendonly", "yes")
    async with Fleet(own_server.url, "default") as fleet:
        await fleet.worker(task(ship))
        await fleet.run("ship", name="a")
        own_server.cli("CONFIG", "SET", "appendfsync", "always")
        assert (await fleet.run("ship", name="b")).status is JobStatus.DONE
        own_server.options["appendonly"] = "yes"
        await asyncio.to_thread(own_server.restart)
        await fleet.reachable()
        assert (await fleet.run("ship", name="c")).status is JobStatus.DONE
        assert ran == Counter("abc")
