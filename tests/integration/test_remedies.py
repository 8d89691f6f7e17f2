"""The table of errors, every cell, for the asynchronous and the blocking client: two scripted nodes say what real ones would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest

from tests.support.waiting import wait_until_async
from upnext.core.keys import Keys
from upnext.engine.client import sync_client as sync_module
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.redis import connection as wire_module
from upnext.engine.redis.endpoint import parse_url
from upnext.engine.redis.lookout import Lookout
from upnext.engine.redis.places import Places
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.replies import (
    REMEDIES,
    REMEDIES_WITHOUT_REPLY,
    LostReplyError,
    NoReply,
    Remedy,
    WrongServerError,
)
from upnext.errors import BrokerUnavailableError, QueueError

GOOD = b"+fine\r\n"
Command = Callable[[], Coroutine[Any, Any, Any]]


class Node:
    """Lets everybody in; answers GET with `answer` (None: closes the connection; b"": nothing)."""

    def __init__(self) -> None:
        self.answer: bytes | None = GOOD
        self.asked = 0
        self.listed = 0
        self.owner_port: int | None = None
        """What it says to CLUSTER SLOTS."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._late: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.close()

    def say(self, reply: bytes) -> None:
        """The late reply to what was asked, on every connection that asked."""
        self.answer = GOOD
        for writer in self._late:
            writer.write(reply)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        requests = hiredis.Reader()
        while data := await reader.read(65536):
            requests.feed(data)
            while (request := requests.gets()) is not False:
                answer = self._answer(request)
                if answer is None:
                    writer.close()
                    return
                if not answer:
                    self._late.append(writer)
                writer.write(answer)
        writer.close()

    def _answer(self, request: Any) -> bytes | None:
        match request:
            case [b"GET", *_]:
                self.asked += 1
                return self.answer
            case [b"CLIENT", b"ID"]:
                return b":7\r\n"
            case [b"CLUSTER", b"INFO"] if self.owner_port is not None:
                info = b"cluster_state:ok\r\ncluster_current_epoch:5\r\n"
                return b"$%d\r\n%b\r\n" % (len(info), info)
            case [b"CLUSTER", b"SLOTS"] if self.owner_port is not None:
                self.listed += 1
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$1\r\nx\r\n" % self.owner_port
            case [b"CLUSTER", *_]:
                return b"-ERR no\r\n"
            case _:
                return b"+OK\r\n"


@asynccontextmanager
async def two_nodes() -> AsyncGenerator[tuple[Node, Node, str]]:
    first, second = Node(), Node()
    await first.start()
    await second.start()
    try:
        yield first, second, f"redis+cluster://127.0.0.1:{first.port},127.0.0.1:{second.port}"
    finally:
        first.close()
        second.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def client_of(kind: str, url: str) -> AsyncGenerator[Command]:
    if kind == "async":
        endpoint = parse_url(url)
        link = Link(endpoint, "test", lookout=Lookout(Places(endpoint), Keys("test").slot))
        yield lambda: link.command("GET", "k")
        await link.aclose()
    else:
        broker = SyncQueueClient(url, "test")
        yield lambda: asyncio.to_thread(broker.command, "GET", "k")
        await asyncio.to_thread(broker.close)


CLIENTS = pytest.mark.parametrize("kind", ["async", "blocking"])


@CLIENTS
@pytest.mark.parametrize("code", [*REMEDIES, "ERR"])
async def test_an_error_reply(kind: str, code: str) -> None:
    async with two_nodes() as (first, second, url), client_of(kind, url) as ask:
        where = f"1 127.0.0.1:{second.port}" if code in ("MOVED", "ASK") else "because of something"
        first.answer = f"-{code} {where}\r\n".encode()
        match REMEDIES.get(code, Remedy.GIVE_UP):
            case Remedy.FOLLOW:
                assert await ask() == b"fine"
                assert (first.asked, second.asked) == (1, 1)
            case Remedy.LOOK_AGAIN:
                with pytest.raises(WrongServerError):
                    await ask()
                assert await ask() == b"fine"
                assert (first.asked, second.asked) == (1, 1)
            case Remedy.RETRY_HERE:
                with pytest.raises(BrokerUnavailableError) as caught:
                    await ask()
                assert not isinstance(caught.value, WrongServerError | LostReplyError)
                first.answer = GOOD
                assert await ask() == b"fine"
                assert (first.asked, second.asked) == (2, 0)
            case Remedy.GIVE_UP:
                with pytest.raises(QueueError) as refused:
                    await ask()
                assert not isinstance(refused.value, WrongServerError | LostReplyError)
                first.answer = GOOD
                assert await ask() == b"fine"
                assert (first.asked, second.asked) == (2, 0)


@CLIENTS
@pytest.mark.parametrize("fault", list(NoReply))
async def test_no_reply(kind: str, fault: NoReply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "SOCKET_TIMEOUT_S", 1.0)
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 1.0)
    async with two_nodes() as (first, second, url), client_of(kind, url) as ask:
        if fault is NoReply.UNREACHABLE:
            first.close()
        else:
            first.answer = None if fault is NoReply.CUT else b""
            with pytest.raises(LostReplyError):
                await ask()
        first.answer = GOOD
        assert await ask() == b"fine"
        elsewhere = REMEDIES_WITHOUT_REPLY[fault] is Remedy.LOOK_AGAIN
        assert second.asked == (1 if elsewhere else 0)


@CLIENTS
async def test_both_nodes_are_tried_again_and_again(kind: str) -> None:
    """Of a cluster that is down altogether, the one that serves first is found."""
    async with two_nodes() as (first, second, url), client_of(kind, url) as ask:
        first.answer = second.answer = b"-CLUSTERDOWN The cluster is down\r\n"
        for _ in range(4):
            with pytest.raises(WrongServerError):
                await ask()
        assert (first.asked, second.asked) == (2, 2)
        second.answer = GOOD
        for _ in range(2):
            try:
                assert await ask() == b"fine"
            except WrongServerError:
                continue
        assert second.asked >= 3


@CLIENTS
async def test_a_server_that_hangs_is_left_when_others_name_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "SOCKET_TIMEOUT_S", 1000.0)
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT_S", 1000.0)
    async with two_nodes() as (first, second, url), client_of(kind, url) as ask:
        assert await ask() == b"fine"
        first.answer = b""
        waiting = asyncio.create_task(ask())
        await wait_until_async(lambda: first.asked == 2)
        second.owner_port = second.port
        with pytest.raises(LostReplyError):
            await waiting
        assert await ask() == b"fine"
        assert second.asked == 1


@CLIENTS
async def test_a_server_that_hangs_is_kept_while_others_name_it(kind: str) -> None:
    async with two_nodes() as (first, second, url), client_of(kind, url) as ask:
        second.owner_port = first.port
        first.answer = b""
        waiting = asyncio.create_task(ask())
        await wait_until_async(lambda: second.listed >= 3, 20, "the other to be asked a few times")
        first.say(GOOD)
        assert await waiting == b"fine"
        assert second.asked == 0
