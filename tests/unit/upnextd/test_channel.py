"""Our own line between processes."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.support.waiting import wait_until_async
from upnextd.shared.channel import Channel
from upnextd.shared.messages import Drain, Message, Ready, TasksDescribed


class End:
    """One end, keeping what it heard."""

    def __init__(self, connection: socket.socket) -> None:
        self.heard: list[Message] = []
        self.closed = 0
        connection.setblocking(False)
        self.channel = Channel(connection, asyncio.get_running_loop(), self.heard.append, self._on_closed)

    def _on_closed(self) -> None:
        self.closed += 1


async def test_messages_both_ways_in_order() -> None:
    left, right = (End(end) for end in socket.socketpair())
    for number in range(100):
        left.channel.send(Drain(number=number))
    right.channel.send(Ready(paused=False))
    await wait_until_async(lambda: len(right.heard) == 100 and len(left.heard) == 1)
    assert right.heard == [Drain(number=number) for number in range(100)]
    left.channel.close()
    await wait_until_async(lambda: right.closed == 1)
    right.channel.send(Ready(paused=False))


async def test_a_big_message_arrives_whole() -> None:
    left, right = (End(end) for end in socket.socketpair())
    left.channel.send(TasksDescribed(number=1, text="x" * 3_000_000))
    await wait_until_async(lambda: len(right.heard) == 1)
    assert right.heard == [TasksDescribed(number=1, text="x" * 3_000_000)]
    left.channel.close()
    right.channel.close()


async def test_a_reader_that_never_reads_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    for _ in range(40):
        end.channel.send(TasksDescribed(number=1, text="x" * 1_000_000))
    assert end.closed == 1
    theirs.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"{\n", b"\xff\xfe\n", b"\n", b"[]\n", b'{"op":"what"}\n', b'{"op":"drain"}\n', b'{"op":"drain","number":"1"}\n'],
)
async def test_nonsense_ends_it(nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    theirs.sendall(nonsense)
    await wait_until_async(lambda: end.closed == 1)
    theirs.close()
