"""The ear: deliveries while it is up, a reread whenever some may have been missed."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import wait_until_async
from upnext.core.keys import Keys
from upnext.engine.redis import subscriber as listener_module
from upnext.engine.redis.endpoint import parse_url
from upnext.engine.redis.reconnecting import Link
from upnext.engine.redis.subscriber import Listener
from upnext.errors import BrokerUnavailableError

KEYS = Keys("test")


class Ear:
    def __init__(self, url: str, *channels: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.rereads = 0
        self.link = Link(parse_url(url), "test")
        self.listener = Listener(self.link, "test-ear", KEYS, list(channels), self._heard, self._reread)

    async def aclose(self) -> None:
        await self.listener.aclose()
        await self.link.aclose()

    def _heard(self, channel: str, data: bytes) -> None:
        self.heard.append((channel, data))

    def _reread(self) -> None:
        self.rereads += 1


async def test_from_start_on_nothing_is_missed(server: Server, namespace: str) -> None:
    ear = Ear(server.url, f"{namespace}:a", f"{namespace}:b")
    await ear.listener.start()
    assert ear.listener.up
    server.cli("SPUBLISH", f"{namespace}:a", "1")
    server.cli("SPUBLISH", f"{namespace}:c", "2")
    server.cli("SPUBLISH", f"{namespace}:b", b"\xff\x00")
    await wait_until_async(lambda: len(ear.heard) == 2)
    assert ear.heard == [(f"{namespace}:a", b"1"), (f"{namespace}:b", b"\xff\x00")]
    assert ear.rereads == 0
    await ear.aclose()


async def test_many_may_start_it(server: Server, namespace: str) -> None:
    ear = Ear(server.url, namespace)
    await asyncio.gather(*(ear.listener.start() for _ in range(20)))
    server.cli("SPUBLISH", namespace, "once")
    await wait_until_async(lambda: ear.heard)
    server.cli("SPUBLISH", namespace, "end")
    await wait_until_async(lambda: ear.heard[-1][1] == b"end")
    assert len(ear.heard) == 2
    await ear.aclose()


@pytest.mark.parametrize("times", [1, 4])
async def test_after_each_cut_it_hears_again_and_rereads(server: Server, namespace: str, times: int) -> None:
    with Proxy(server) as path:
        ear = Ear(path.url, namespace)
        await ear.listener.start()
        for number in range(1, times + 1):
            path.cut()
            await wait_until_async(lambda number=number: ear.rereads == number)
            server.cli("SPUBLISH", namespace, str(number))
            await wait_until_async(lambda number=number: len(ear.heard) == number)
        await ear.aclose()


async def test_an_outage(own_server: Server, namespace: str) -> None:
    ear = Ear(own_server.url, namespace)
    await ear.listener.start()
    await asyncio.to_thread(own_server.stop)
    await wait_until_async(lambda: not ear.listener.up)
    await asyncio.to_thread(own_server.start)
    await wait_until_async(lambda: ear.rereads == 1 and ear.listener.up)
    own_server.cli("SPUBLISH", namespace, "again")
    await wait_until_async(lambda: ear.heard == [(namespace, b"again")])
    await ear.aclose()


async def test_a_connection_that_went_silent_is_noticed(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "PROVE_S", 0.1)
    monkeypatch.setattr(listener_module, "DEAF_S", 1.0)
    with Proxy(server) as path:
        ear = Ear(path.url, namespace)
        await ear.listener.start()
        path.silence()
        await wait_until_async(lambda: not ear.listener.up)
        path.mend()
        path.cut()
        await wait_until_async(lambda: ear.rereads >= 1)

        def hears() -> bool:  # the cut may have met the new connection, too
            server.cli("SPUBLISH", namespace, "again")
            return bool(ear.heard)

        await wait_until_async(hears)
        await ear.aclose()


async def test_a_quiet_channel_is_no_silence(server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "PROVE_S", 0.1)
    monkeypatch.setattr(listener_module, "DEAF_S", 1.5)
    ear = Ear(server.url, namespace)
    await ear.listener.start()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await wait_until_async(lambda: loop.time() - begun > 3.0)
    assert (ear.listener.up, ear.rereads) == (True, 0)
    await ear.aclose()


async def test_nobody_there(namespace: str) -> None:
    ear = Ear("redis://127.0.0.1:1/0", namespace)
    with pytest.raises(BrokerUnavailableError):
        await ear.listener.start()
    await ear.aclose()


async def test_it_can_be_closed_at_any_time(server: Server, namespace: str) -> None:
    with Proxy(server) as path:
        ear = Ear(path.url, namespace)
        await ear.aclose()
        ear = Ear(path.url, namespace)
        await ear.listener.start()
        path.close_down()
        await wait_until_async(lambda: not ear.listener.up)
        await ear.aclose()
        await ear.aclose()
