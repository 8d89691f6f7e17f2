"""A worker's membership, with a broker of plain values: when it is lost, when it is won again, and who is notified in which order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import pytest

from tests.support.fleet import task
from tests.support.waiting import wait_until_async
from upnext.core.keys import Keys
from upnext.core.spec import ServiceSpec, WorkerSpec
from upnext.engine.redis.replies import ReplyError, read_error
from upnext.engine.worker import membership as module
from upnext.engine.worker.host import NoHost
from upnext.engine.worker.membership import Membership
from upnext.engine.worker.settings import RuntimeSettings
from upnext.errors import BrokerRefusedError, BrokerUnavailableError, ConflictError, QueueError

CONFLICT = 'CONFLICT {"task":"ship","service":"other","host":"h2","file":"b.py"}'


class Broker:
    """Answers each call with the next of `replies`, at last with an epoch."""

    def __init__(self, *replies: QueueError) -> None:
        self.keys = Keys("unit")
        self.replies: deque[QueueError] = deque(replies)
        self.epoch = "e1"
        self.values: dict[str, bytes | None] = {}
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()

    @property
    def link(self) -> Broker:
        return self

    async def command(self, *command: str) -> bytes | None:
        return self.values.get(command[0])

    async def run(self, call: Any) -> Any:
        self.calls += 1
        await self.open.wait()
        if self.replies:
            raise self.replies.popleft()
        return self.epoch, 1_000_000


class Host(NoHost):
    def __init__(self) -> None:
        self.consumers: list[str] = []

    def consumer(self, consumer: str) -> None:
        self.consumers.append(consumer)


def member(broker: Broker) -> tuple[Membership, Host]:
    async def ship() -> None: ...

    worker = WorkerSpec("w", 1, {"ship": task(ship, "ship")})
    host = Host()
    settings = RuntimeSettings("redis://nowhere", host_name="h1")
    return Membership(cast("Any", broker), ServiceSpec("shop", (worker,)), worker, settings, host), host


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoBackoff:
        async def sleep(self) -> None:
            await asyncio.sleep(0)

    monkeypatch.setattr(module, "Backoff", NoBackoff)


async def test_it_is_empty_until_it_is_registered() -> None:
    membership, host = member(Broker())
    assert (membership.consumer, membership.epoch, membership.registered) == ("", "", False)
    await membership.register()
    assert membership.consumer.startswith("h1.")
    assert (host.consumers, membership.epoch, membership.registered) == ([membership.consumer], "e1", True)
    await asyncio.wait_for(membership.wait_registered(), 5)


async def test_the_server_s_clock_is_learned_with_the_registration() -> None:
    membership, _ = member(Broker())
    await membership.register()
    assert membership.server_offset_s < -1e9, "the reply gave 1,000 s after 1970"


@pytest.mark.parametrize(("reason", "reaped"), [("REAPED: its lease is missing", True), ("EPOCH other data", False)])
async def test_a_lost_one_gets_another_name_and_tells_who_watches(reason: str, reaped: bool) -> None:
    membership, _ = member(Broker())
    seen: list[str] = []
    membership.watch(lost=lambda was_reaped: seen.append(f"lost {was_reaped} {membership.registered}"))
    membership.watch(registered_anew=lambda: seen.append("first"))
    membership.watch(registered_anew=lambda: seen.append("second"))
    await membership.register()
    first = membership.consumer
    assert seen == [], "the first registration is no new one"
    membership.lost(reason)
    assert not membership.registered
    await wait_until_async(lambda: len(seen) == 3)
    assert seen == [f"lost {reaped} False", "first", "second"]
    assert membership.consumer != first


async def test_it_is_lost_once_however_many_say_so() -> None:
    broker = Broker()
    membership, host = member(broker)
    await membership.register()
    broker.open.clear()
    for _ in range(3):
        membership.lost("EPOCH other data")
    broker.open.set()
    await asyncio.wait_for(membership.wait_registered(), 5)
    assert len(host.consumers) == 2


async def test_it_goes_on_trying_while_the_broker_is_away_or_refuses() -> None:
    broker = Broker()
    membership, host = member(broker)
    await membership.register()
    broker.replies += [BrokerUnavailableError("away"), read_error(CONFLICT), read_error("OOM full")]
    membership.lost("EPOCH other data")
    await asyncio.wait_for(membership.wait_registered(), 5)
    assert len(host.consumers) == 5


async def test_after_the_end_nothing_registers() -> None:
    membership, host = member(Broker())
    await membership.register()
    membership.end()
    membership.lost("REAPED")
    assert membership.registered
    await membership.aclose()
    assert len(host.consumers) == 1


async def test_closing_ends_an_attempt_to_register() -> None:
    broker = Broker()
    membership, _ = member(broker)
    await membership.register()
    broker.open.clear()
    membership.lost("REAPED")
    await asyncio.wait_for(membership.aclose(), 5)
    assert not membership.registered


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (CONFLICT, ConflictError, "task 'ship' of this process (service shop, host h1) is also a task of b.py"),
        ("SCHEMA 9", BrokerRefusedError, "newer version of upnext"),
        ("WRONGTYPE x", ReplyError, "WRONGTYPE"),
    ],
)
async def test_what_a_refusal_says(reply: str, kind: type[Exception], text: str) -> None:
    membership, _ = member(Broker(read_error(reply)))
    with pytest.raises(kind) as caught:
        await membership.register()
    assert text in str(caught.value)
    assert not membership.registered


@pytest.mark.parametrize(("epoch", "score", "kept"), [(b"e1", b"5", True), (b"e2", b"5", False), (b"e1", None, False)])
async def test_mending_keeps_the_name_only_while_the_data_is_the_same(
    epoch: bytes, score: bytes | None, kept: bool
) -> None:
    broker = Broker()
    membership, host = member(broker)
    await membership.register()
    first = membership.consumer
    broker.values = {"GET": epoch, "ZSCORE": score}
    await membership.mend()
    await asyncio.wait_for(membership.wait_registered(), 5)
    assert (membership.consumer == first) is kept
    assert len(host.consumers) == (1 if kept else 2)
    assert broker.calls == 2


async def test_the_recorded_connection_is_the_next_registration_s_too() -> None:
    broker = Broker()
    membership, _ = member(broker)
    await membership.register()
    await membership.record_connection(17)
    assert membership.client_id == 17
