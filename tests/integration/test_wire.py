"""One connection: replies in their order, what happens when it breaks, and the link that makes it again."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import PATIENCE, wait_until_async
from upnext.core.keys import Keys
from upnext.engine.calls import client
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.redis import connection as wire_module
from upnext.engine.redis.connection import connect
from upnext.engine.redis.endpoint import parse_url
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import LostReplyError, ReplyError
from upnext.errors import BrokerRefusedError, BrokerUnavailableError


async def test_replies_come_in_order(redis_url: str) -> None:
    wire = await connect(parse_url(redis_url), name="test", timeout_s=30)
    replies = [wire.send("ECHO", str(number)) for number in range(1000)]
    assert wire.in_flight == 1000
    assert [await reply for reply in replies] == [str(number).encode() for number in range(1000)]
    assert wire.client_id > 0
    wire.close()
    await wire.closed


async def test_one_who_gave_up_waiting_does_not_shift_the_others(redis_url: str) -> None:
    wire = await connect(parse_url(redis_url), name="test", timeout_s=30)
    first, second, third = (wire.send("ECHO", word) for word in "abc")
    second.cancel()
    assert (await first, await third) == (b"a", b"c")
    assert await wire.send("PING") == b"PONG"
    wire.close()


async def test_an_error_is_for_its_own_command(redis_url: str) -> None:
    wire = await connect(parse_url(redis_url), name="test", timeout_s=30)
    bad, good = wire.send("NONSENSE"), wire.send("PING")
    with pytest.raises(ReplyError):
        await bad
    assert await good == b"PONG"
    wire.close()


async def test_large_values_in_both_directions(redis_url: str, namespace: str) -> None:
    wire = await connect(parse_url(redis_url), name="test", timeout_s=30)
    key = Keys(namespace).prefix + "large"
    value = b"x" * 20_000_000
    await wire.send("SET", key, value, "PX", 60_000)
    assert await wire.send("GET", key) == value
    wire.close()


@pytest.mark.parametrize("how", ["abort", "kill", "cut"])
async def test_a_broken_connection_tells_everybody(server: Server, how: str) -> None:
    with Proxy(server) as path:
        wire = await connect(parse_url(path.url), name="test", timeout_s=30)
        blocked = [wire.send("BLPOP", "nothing-here", 0), wire.send("PING")]
        await wait_until_async(lambda: wire.in_flight == 2 and path.requested_bytes > 0)
        if how == "abort":
            wire.abort()
        elif how == "cut":
            path.cut()
        else:
            server.cli("CLIENT", "KILL", "ID", wire.client_id)
        for reply in blocked:
            with pytest.raises(LostReplyError):
                await asyncio.wait_for(reply, 30)
        with pytest.raises(BrokerUnavailableError) as raised:
            wire.send("PING")
        assert not isinstance(raised.value, LostReplyError), "nothing was sent"


async def test_a_silent_connection_that_owes_replies_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 0.3)
    with Proxy(server) as path:
        wire = await connect(parse_url(path.url), name="test", timeout_s=30)
        path.silence()
        begun = time.monotonic()
        with pytest.raises(LostReplyError):
            await asyncio.wait_for(wire.send("PING"), 30)
        assert time.monotonic() - begun < 3 * PATIENCE


async def test_an_idle_connection_is_not_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 0.4)
    wire = await connect(parse_url(server.url), name="test", timeout_s=30)
    begun = time.monotonic()
    await wait_until_async(lambda: time.monotonic() - begun > 1.5)
    assert await wire.send("PING") == b"PONG"
    wire.close()


def keep_the_loop(seconds: float) -> None:
    """As code does that takes long between two awaits."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def test_what_is_asked_after_the_loop_was_kept_has_its_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = await connect(parse_url(server.url), name="test", timeout_s=30)
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 0.4)
    monkeypatch.setattr(wire_module, "CHECK_S", 0.05)
    assert await wire.send("PING") == b"PONG"
    keep_the_loop(0.6)
    assert await wire.send("PING") == b"PONG"
    wire.close()


async def test_a_silent_connection_is_given_up_however_the_loop_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(wire_module, "CHECK_S", 0.05)
    with Proxy(server) as path:
        wire = await connect(parse_url(path.url), name="test", timeout_s=30)
        path.silence()
        reply = wire.send("PING")
        begun = time.monotonic()
        while not reply.done() and time.monotonic() - begun < 30:
            keep_the_loop(0.3)
            await asyncio.sleep(0)
        with pytest.raises(LostReplyError):
            await asyncio.wait_for(reply, 1)


async def test_a_script_that_the_server_forgot_is_sent_again(redis_url: str, namespace: str) -> None:
    link = Link(parse_url(redis_url), "test")
    call = client.unwatch(Keys(namespace), "ship:n1-0", "x", 1)
    await link.command("SCRIPT", "FLUSH")
    assert await link.run(call) is False
    assert await link.run(call) is False
    await link.aclose()


async def test_all_share_one_attempt_to_connect(server: Server) -> None:
    with Proxy(server) as path:
        link = Link(parse_url(path.url), "test")
        wires = await asyncio.gather(*(link.wire() for _ in range(50)))
        assert len(set(map(id, wires))) == 1
        assert path.connections == 1
        path.cut()
        await wires[0].closed
        again = await asyncio.gather(*(link.wire() for _ in range(50)))
        assert len(set(map(id, again))) == 1
        assert path.connections == 2
        await link.aclose()


async def test_one_who_gives_up_does_not_spoil_it_for_the_others(server: Server) -> None:
    with Proxy(server) as path:
        link = Link(parse_url(path.url), "test")
        impatient, patient = asyncio.create_task(link.wire()), asyncio.create_task(link.wire())
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).client_id > 0
        await link.aclose()


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "unix:///nowhere/at/all.sock", "redis://no-such-host.invalid:6379/0"]
)
async def test_nobody_there(url: str) -> None:
    link = Link(parse_url(url), "test")
    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(link.wire(), 30)
    await link.aclose()


async def test_a_server_that_accepts_and_says_nothing(server: Server) -> None:
    with Proxy(server) as path:
        path.silence()
        link = Link(parse_url(path.url), "test", connect_timeout_s=1.0)
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            await link.wire()
        assert time.monotonic() - begun < 3 * PATIENCE
        path.mend()
        assert (await link.wire()).client_id > 0
        await link.aclose()


async def test_something_that_is_no_redis() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    link = Link(parse_url(f"redis://127.0.0.1:{port}/0"), "test")
    with pytest.raises(BrokerRefusedError, match=f"what answers at 127.0.0.1:{port} is not a Redis server"):
        await asyncio.wait_for(link.wire(), 30)
    await link.aclose()
    broker = SyncQueueClient(f"redis://127.0.0.1:{port}/0", "test")
    with pytest.raises(BrokerRefusedError, match=f"what answers at 127.0.0.1:{port} is not a Redis server"):
        await asyncio.to_thread(broker.command, "PING")
    broker.close()
    listener.close()


async def test_a_database_that_the_server_does_not_have(server: Server) -> None:
    url = f"{server.url}?db=9999"
    link, broker = Link(parse_url(url), "test"), SyncQueueClient(url, "test")
    with pytest.raises(BrokerRefusedError, match="the broker refuses: .*DB index is out of range"):
        await link.wire()
    await link.aclose()
    with pytest.raises(BrokerRefusedError, match="the broker refuses: .*DB index is out of range"):
        await asyncio.to_thread(broker.command, "PING")
    broker.close()


async def test_passwords(own_server: Server) -> None:
    own_server.cli("CONFIG", "SET", "requirepass", "secret")
    path = own_server.socket_path
    for url in (f"unix://{path}", f"unix://:wrong@{path}", f"unix://nobody:secret@{path}"):
        link = Link(parse_url(url), "test")
        with pytest.raises(BrokerRefusedError, match="; check the user and the password in its URL"):
            await link.wire()
        await link.aclose()
    link = Link(parse_url(f"unix://:secret@{path}"), "test")
    assert (await link.wire()).client_id > 0
    await link.aclose()
