"""Prefetch: short jobs are buffered, yet a long one keeps nobody waiting; an explicit number is kept to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.service import Running, serving
from tests.support.waiting import PATIENCE, wait_until_async

SERVICE = '''
    """One job at a time in each child."""
    import asyncio
    import upnext

    worker = upnext.Worker("w", concurrency=1)

    @worker.task
    async def work(pause: float) -> None:
        await asyncio.sleep(pause)
'''


def work() -> Any:
    worker = upnext.Worker("handles")

    @worker.task
    async def work(pause: float) -> None: ...

    return work


@pytest.mark.parametrize("warm", [False, True])
def test_fifty_short_jobs_do_not_wait_behind_a_long_one(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    daemon(SERVICE, redis_url=redis_url, namespace=namespace, workers=2)
    task = work()
    if warm:  # both have just been busy with short ones, and would buffer many
        for future in task.submit_many_sync([(0.001,) for _ in range(400)]):
            future.result_sync(30)
    long, *short = task.submit_many_sync([(12.0,), *[(0.005,)] * 50])
    submitted = time.time()
    ends = [future.result_sync(60).completed_at.timestamp() for future in short]
    assert max(ends) - submitted < 1.0 * PATIENCE
    assert long.result_sync(60).completed_at.timestamp() - submitted > 11.9


async def pending_is(running: Running, count: int) -> bool:
    return await running.pending("blocks") == count


async def handed_back_is(running: Running, count: int) -> bool:
    info: Any = await running.command("XINFO", "STREAM", running.keys.stream("blocks", "b"))
    return int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"]) == count


@pytest.mark.parametrize(("prefetch", "held"), [(0, 0), (3, 3), (7, 7)])
async def test_an_explicit_prefetch_is_kept_to(redis_url: str, namespace: str, prefetch: int, held: int) -> None:
    worker = upnext.Worker("w", concurrency=2, prefetch=prefetch)
    let_go, most = asyncio.Event(), [0]

    @worker.task
    async def blocks() -> None:
        await let_go.wait()

    async with serving(worker, redis_url, namespace) as running:
        futures = await blocks.submit_many([()] * 20)
        # nothing ends here, so what was held is handed back soon, for anybody else to run: how many were is kept
        await wait_until_async(lambda: handed_back_is(running, held), 10, f"{held} to be held beside the running two")
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.0

        async def watched() -> bool:
            most[0] = max(most[0], await running.pending("blocks"))
            return loop.time() > until

        await wait_until_async(watched, 5)
        assert most[0] <= 2 + held
        await wait_until_async(lambda: pending_is(running, 2), 10, "nothing to be held in vain")
        let_go.set()
        for future in futures:
            await future.result(60)
