"""Tasks over time, end to end: workers keep how long attempts waited and ran, the leader samples counters and depths."""

from __future__ import annotations

import asyncio
import time

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.keys import Keys
from upnext.core.series import COARSE, FINE, quantile_s
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.scheduler import sampling
from upnext.engine.views import series as views
from upnext.engine.worker import times


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_worker_that_stops_has_sent_its_times(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @worker.task(retries=0)
    async def fails() -> None:
        await asyncio.sleep(0.02)
        raise ValueError

    async with serving(worker, redis_url, namespace):
        await asyncio.gather(*(nap.wait(0.1) for _ in range(8)))
        with pytest.raises(upnext.TaskExecutionError):
            await fails.wait()
    client = SyncQueueClient(redis_url, namespace)
    keys = Keys(namespace)
    usual = views.usual(client, keys, "nap", _now_ms())
    assert sum(usual.runs.values()) >= 4
    assert 0.07 < (quantile_s(usual.runs, 0.5) or 0) < 1.0
    assert sum(views.usual(client, keys, "fails", _now_ms()).runs.values()) == 1
    client.close()


async def test_times_are_sent_while_a_worker_lives(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "SEND_S", 0.05)
    worker = upnext.Worker("w")

    @worker.task
    async def quick() -> None: ...

    client = SyncQueueClient(redis_url, namespace)
    async with serving(worker, redis_url, namespace):
        for count in (1, 2):
            await quick.wait()
            await wait_until_async(
                lambda: sum(views.usual(client, Keys(namespace), "quick", _now_ms()).runs.values()) == count,  # noqa: B023
                10,
            )
    client.close()


async def test_the_leader_samples(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MINUTE_S", 0.2)
    monkeypatch.setattr(sampling, "LATE_S", 0.0)
    worker = upnext.Worker("w")

    @worker.task
    async def quick() -> None: ...

    client, keys = SyncQueueClient(redis_url, namespace), Keys(namespace)

    def sampled() -> bool:
        wanted = views.moments(_now_ms(), FINE, 2)
        _, found = views.read(client, keys, FINE, wanted)
        return any(one.sampled and "quick" in one.samples for one in found.values())

    async with serving(worker, redis_url, namespace, copies=2):
        await wait_until_async(sampled, 20)
    steps = {
        key.decode().removeprefix(keys.prefix).split(":")[1] for key in client.command("KEYS", keys.series_prefix + "*")
    }
    assert str(FINE) in steps
    assert steps <= {str(FINE), str(COARSE), "last"}
    client.close()
