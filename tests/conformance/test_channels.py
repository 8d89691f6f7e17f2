"""What wakes the clients: on a cluster it stays on the shard of the namespace, and follows its slot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.serving import serving
from tests.support.topologies import Cluster
from tests.support.waiting import given, wait_until_async
from upnext import Worker
from upnext.core.keys import Keys
from upnext.engine.client import waiting as waiting_module


def service(go: asyncio.Event) -> tuple[Worker, Any]:
    worker = Worker("conformance", concurrency=8)

    @worker.task
    async def waits(n: int) -> int:
        await go.wait()
        return n

    return worker, waits


def bus_messages(topology: Cluster) -> int:
    """Published words that the nodes sent each other so far."""
    lines = [line for node in topology.nodes() for line in node.cli("CLUSTER", "INFO").splitlines()]
    return sum(int(line.rpartition(b":")[2]) for line in lines if b"_publish" in line and b"_sent:" in line)


@pytest.mark.broker("cluster")
async def test_a_wait_sends_nothing_to_other_shards(topology: Cluster, namespace: str) -> None:
    go = asyncio.Event()
    go.set()
    worker, waits = service(go)
    async with serving(topology.url, namespace, worker):
        assert (await waits.wait(0, wait_timeout=10)).value == 0
        assert await asyncio.to_thread(lambda: waits.wait_sync(0, wait_timeout=given(10)).value) == 0
        before = bus_messages(topology)
        for number in range(20):
            assert (await waits.wait(number, wait_timeout=10)).value == number
        assert bus_messages(topology) == before
        bell = Keys(namespace).bell
        others = [node for node in topology.nodes() if node is not topology.holder(namespace)]
        assert [node.cli("PUBSUB", "SHARDCHANNELS", bell) for node in others] == [[], []]


@pytest.mark.broker("cluster")
async def test_waits_follow_the_slot(topology: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "REREAD_S", 1000.0)  # an end that is not published is not found by rereading
    go = asyncio.Event()
    worker, waits = service(go)
    keys = Keys(namespace)
    async with serving(topology.url, namespace, worker):
        ends = [
            asyncio.create_task(waits.wait(1, wait_timeout=given(20))),
            asyncio.create_task(asyncio.to_thread(waits.wait_sync, 2, wait_timeout=given(20))),
        ]
        channels = 3  # the bell of worker and scheduler, and one for each waiter

        def subscribed() -> bool:
            return len(topology.holder(namespace).cli("PUBSUB", "SHARDCHANNELS", f"{keys.prefix}*")) >= channels

        await wait_until_async(subscribed, 10, "all to have subscribed")
        await asyncio.to_thread(topology.move, namespace)
        await wait_until_async(subscribed, 10, "all to have subscribed where the slot is now")
        go.set()
        assert [(await end).value for end in ends] == [1, 2]
