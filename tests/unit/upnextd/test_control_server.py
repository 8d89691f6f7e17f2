"""The control socket: who may come in, and what bad clients can't do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.waiting import wait_until_async
from upnext.control import protocol
from upnext.control.protocol import ErrorCode, Request
from upnextd.control.server import LONG_CAP, Client, CommandError, ControlServer, SocketInUseError, bind


class Commands:
    """Answers `status` with a lot, refuses `pause`."""

    def __init__(self) -> None:
        self.left = 0
        self.followers: set[Client] = set()

    async def _wait(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    def answer(
        self, request: Request, params: dict[str, Any], client: Client
    ) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        if request.method == "subscribe":
            self.subscribe(client)
        if request.method == "wait":
            return self._wait()
        if request.method == "pause":
            raise CommandError(ErrorCode.CONFLICT, "no")
        return {"method": request.method, "filler": "x" * 500_000 if request.method == "status" else ""}

    def client_left(self, client: Client) -> None:
        self.left += 1
        self.followers.discard(client)

    def subscribe(self, client: Client) -> None:
        self.followers.add(client)

    def subscribed(self, client: Client) -> bool:
        return client in self.followers


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs a test on the loop that the supervisor has, and on the children's."""

    def run() -> None:
        asyncio.run(test())
        uvloop.run(test())

    run.__doc__ = test.__doc__
    return run


@asynccontextmanager
async def running() -> AsyncIterator[tuple[ControlServer, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="upnextd-"))
    server = ControlServer(folder / "c.sock", Commands())
    await server.start()
    try:
        yield server, folder / "c.sock"
    finally:
        await server.close()
        shutil.rmtree(folder)


async def ask(path: Path, data: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=4 << 20)
    writer.write(data)
    line = await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    return json.loads(line)


def request(method: str, **params: Any) -> bytes:
    return protocol.encode(Request(1, method, params))


@on_both_loops
async def test_it_is_private_from_birth_and_gone_at_the_end() -> None:
    async with running() as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await ask(path, request("hello")))["result"]["method"] == "hello"
    assert not path.exists()


@on_both_loops
async def test_errors_are_answered() -> None:
    async with running() as (_, path):
        assert (await ask(path, request("pause")))["error"]["code"] == ErrorCode.CONFLICT
        assert (await ask(path, request("nope")))["error"]["code"] == ErrorCode.METHOD_NOT_FOUND
        assert (await ask(path, b"junk\n"))["error"]["code"] == ErrorCode.PARSE
        assert (await ask(path, b"\x00\xff\n"))["error"]["code"] == ErrorCode.PARSE


@on_both_loops
async def test_a_frame_over_the_cap_is_refused() -> None:
    async with running() as (server, path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"x" * (protocol.FRAME_CAP_BYTES + 2))
        answer = json.loads(await asyncio.wait_for(reader.readline(), 60))
        assert answer["error"]["code"] == ErrorCode.FRAME_TOO_LARGE
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        await wait_until_async(lambda: not server.clients)


@on_both_loops
async def test_the_seventeenth_client_is_turned_away() -> None:
    async with running() as (server, path):
        writers = [(await asyncio.open_unix_connection(str(path)))[1] for _ in range(protocol.CLIENT_CAP)]
        await wait_until_async(lambda: len(server.clients) == protocol.CLIENT_CAP)
        assert (await ask(path, b""))["error"]["code"] == ErrorCode.TOO_MANY_CLIENTS
        writers.pop().close()
        await wait_until_async(lambda: len(server.clients) == protocol.CLIENT_CAP - 1)
        assert "result" in await ask(path, request("hello"))
        for writer in writers:
            writer.close()


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    """Whatever is opened in this process fails."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest + 32, before[1]), before[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


@on_both_loops
async def test_who_comes_when_no_descriptor_is_free_is_let_in() -> None:
    async with running() as (server, path):
        assert "result" in await ask(path, request("hello"))
        await wait_until_async(lambda: not server.clients)
        newcomers = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        with no_descriptor_free():
            for newcomer in newcomers:
                # One after the other, and more than there are descriptors kept for them: each that leaves makes room.
                newcomer.setblocking(False)
                await asyncio.get_running_loop().sock_connect(newcomer, str(path))
                await wait_until_async(lambda: len(server.clients) == 1, 20)
                newcomer.close()
                await wait_until_async(lambda: not server.clients)


@on_both_loops
async def test_clients_that_stay_leave_places_for_short_questions() -> None:
    async with running() as (server, path):
        writers: list[asyncio.StreamWriter] = []
        for number in range(LONG_CAP):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writers.append(writer)
            writer.write(request("subscribe") if number % 2 else request("wait", op_id="1"))
            if number % 2:
                assert "result" in json.loads(await asyncio.wait_for(reader.readline(), 60))
        await wait_until_async(lambda: sum(client.stays for client in server.clients) == LONG_CAP)
        refused = await ask(path, request("subscribe"))
        assert refused["error"]["code"] == ErrorCode.CONFLICT
        assert f"{LONG_CAP} clients follow events" in refused["error"]["message"]
        assert "result" in await ask(path, request("hello"))
        writers.pop(0).close()
        await wait_until_async(lambda: sum(client.stays for client in server.clients) == LONG_CAP - 1)
        assert "result" in await ask(path, request("subscribe"))
        for writer in writers:
            writer.close()


@on_both_loops
async def test_who_does_not_read_is_dropped() -> None:
    async with running() as (server, path):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.setblocking(False)
            rude.connect(str(path))
            for _ in range(40):
                await asyncio.get_running_loop().sock_sendall(rude, request("status"))
            await wait_until_async(lambda: not server.clients)
        assert "result" in await ask(path, request("hello"))


def test_a_dead_socket_is_replaced_a_living_one_is_not(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="upnextd-"))
    path = folder / "c.sock"
    try:
        with bind(path), pytest.raises(SocketInUseError):
            bind(path)
        assert path.exists()
        with bind(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        path.unlink()
        path.write_text("not a socket")
        with pytest.raises(SocketInUseError):
            bind(path)
        assert path.read_text() == "not a socket"
    finally:
        shutil.rmtree(folder)
