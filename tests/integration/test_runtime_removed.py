"""An operator removes a stream, or its consumer group, while jobs of it and of others run."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.fleet import Fleet, task
from upnext.core import ids
from upnext.core.outcome import JobStatus


@pytest.mark.parametrize("command", ["XGROUP DESTROY", "DEL"])
async def test_other_jobs_keep_their_worker_and_nothing_runs_twice(
    redis_url: str, namespace: str, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[str] = []
    let_go = asyncio.Event()

    async def ship(name: str) -> str:
        begun.append(name)
        await let_go.wait()
        return name

    async def pack(name: str) -> str:
        begun.append(name)
        await let_go.wait()
        return name

    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(ship), task(pack), concurrency=2, prefetch=2)
        consumer = life.consumer
        shipped, packed = await fleet.submit("ship", name="a"), await fleet.submit("pack", name="b")
        await fleet.until(lambda: len(begun) == 2)
        stream = fleet.keys.stream("ship", "n")
        group = ["w"] if command == "XGROUP DESTROY" else []
        await fleet.broker.link.command(*command.split(), stream, *group)
        await fleet.until(lambda: time.time_ns() // 1_000_000 > ids.parse(shipped).ms + 1)  # a new stream counts anew
        later = await fleet.submit("ship", name="c")  # nobody reads it before the group is there again
        await fleet.until(lambda: "made anew" in caplog.text)

        async def read_again() -> bool:
            summary = await fleet.broker.link.command("XPENDING", stream, "w")
            return summary[0] == (2 if group else 1)

        await fleet.until(read_again)
        let_go.set()
        assert (await fleet.broker.wait(packed, 10)).value == b'"b"'
        assert (await fleet.broker.wait(later, 10)).value == b'"c"'
        if group:
            assert (await fleet.broker.wait(shipped, 10)).status is JobStatus.DONE
        assert begun == ["a", "b", "c"]
        assert life.consumer == consumer, "what else it holds is still its own"
        assert await fleet.leaks() == []
