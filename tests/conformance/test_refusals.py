"""What a broker must not be, and what it may refuse."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

import upnext.engine
from tests.support.serving import serving
from tests.support.topologies import Acl, Single, Topology, minimal_acl
from tests.support.waiting import wait_until_async
from upnext import Worker
from upnext.core.keys import Keys
from upnext.errors import BrokerFullError, BrokerRefusedError

SINGLE = pytest.mark.broker("redis7", "valkey", "unix", "tls", "acl")
LUA = Path(upnext.engine.__file__).parent / "lua"


def worker_of_nothing() -> Worker:
    worker = Worker("conformance")

    @worker.task
    async def nothing() -> None: ...

    return worker


@SINGLE
async def test_an_eviction_policy_is_refused_with_the_reason(topology: Single, namespace: str) -> None:
    topology.server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(
            BrokerRefusedError, match=r"may evict jobs \(maxmemory-policy allkeys-lru\): set it to noeviction"
        ):
            async with serving(topology.url, namespace, worker_of_nothing()):
                pass
    finally:
        topology.server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")


@SINGLE
async def test_a_full_broker_refuses_jobs_and_nothing_else(
    topology: Single, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("conformance", concurrency=10)
    go = asyncio.Event()
    tries: list[int] = []

    @worker.task
    async def waits(n: int) -> int:
        await go.wait()
        return n

    @worker.task(retries=1, retry_delay=0.05)
    async def tries_again() -> int:
        await go.wait()
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        return len(tries)

    @worker.task
    async def queued(n: int) -> int:
        return n

    event = worker.event("e")

    @event.on
    async def handler() -> None: ...

    server, keys = topology.server, Keys(namespace)
    async with serving(topology.url, namespace, worker):
        running = await waits.submit_many([(n,) for n in range(9)])
        failing = await tries_again.submit()
        behind = await queued.submit_many([(n,) for n in range(20)])
        await wait_until_async(
            lambda: server.cli("XPENDING", keys.stream("waits", "n"), "w")["pending"] == 9, 5, "nine to run"
        )
        server.cli("CONFIG", "SET", "maxmemory", "1mb")
        try:
            with pytest.raises(BrokerFullError, match="the broker is full"):
                await queued.submit(1)
            with pytest.raises(BrokerFullError):
                await queued.options(delay=60).submit(1)
            with pytest.raises(BrokerFullError):
                await queued.submit_many([(n,) for n in range(5)])
            with pytest.raises(BrokerFullError):
                await asyncio.to_thread(queued.submit_sync, 1)
            with pytest.raises(BrokerFullError):
                await event.send()
            [lease] = [end for _, end in server.cli("ZRANGE", keys.leases, 0, -1, "WITHSCORES")]
            renewed = await wait_until_async(
                lambda: [end for _, end in server.cli("ZRANGE", keys.leases, 0, -1, "WITHSCORES")] != [lease],
                6,
                "a beat",
            )
            assert renewed
            go.set()
            assert [await future.value(60) for future in running] == list(range(9))
            assert await failing.value(60) == 2
            assert [await future.value(60) for future in behind] == list(range(20))
        finally:
            server.cli("CONFIG", "SET", "maxmemory", "0")
        assert (await queued.wait(3)).value == 3
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.broker("acl")
async def test_permissions_that_are_missing_are_named(topology: Acl, namespace: str) -> None:
    topology.server.cli("ACL", "SETUSER", "weak", "on", ">weak", "~*", "&*", "+@all", "-evalsha", "-eval")
    url = topology.url.replace("upnext:s3cret@", "weak:weak@")
    with pytest.raises(BrokerRefusedError, match="evalsha"):
        async with serving(url, namespace, worker_of_nothing()):
            pass
    with pytest.raises(BrokerRefusedError, match="WRONGPASS"):
        async with serving(topology.url.replace("s3cret", "wrong"), namespace, worker_of_nothing()):
            pass


@pytest.mark.broker("acl")
async def test_other_namespaces_are_closed(topology: Acl, namespace: str) -> None:
    with pytest.raises(BrokerRefusedError, match="NOPERM|permission"):
        async with serving(topology.url, "foreign", worker_of_nothing()):
            pass


@pytest.mark.broker("acl")
def test_the_permissions_cover_every_script(topology: Acl) -> None:
    """Also those that no test of this suite happens to run."""
    called = set[str]()
    for path in LUA.rglob("*.lua"):
        text = path.read_text()
        called |= {f"{name}|{sub}" for name, sub in re.findall(r"redis\.p?call\('(XGROUP|XINFO)', *'(\w+)'", text)}
        called |= {name for name in re.findall(r"redis\.p?call\('(\w+)'", text) if name not in ("XGROUP", "XINFO")}
    allowed = {word[1:] for word in minimal_acl("u", "p", "n") if word.startswith("+")}
    assert {name.lower() for name in called} <= allowed


@pytest.mark.broker("acl")
def test_nothing_was_refused_so_far(topology: Acl) -> None:
    """Runs last: nothing that this suite did with the minimal permissions was denied, the foreign namespace apart."""
    raw = topology.server.client()
    try:
        denied = raw.acl_log()
    finally:
        raw.close()
    ours = [one for one in denied if one["username"] == "upnext" and one["reason"] != "auth"]
    ours = [one for one in ours if "foreign" not in str(one["object"])]
    assert ours == []


async def test_topologies_are_what_they_say(topology: Topology, namespace: str) -> None:
    """The data of a namespace is where `holder` says."""
    async with serving(topology.url, namespace, worker_of_nothing()):
        assert topology.holder(namespace).cli("EXISTS", Keys(namespace).epoch) == 1
