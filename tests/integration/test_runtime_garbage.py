"""What is in the streams but is no job of ours: kept aside where it can be looked at, and in nobody's way."""

from __future__ import annotations

import pytest

from tests.support.fleet import Fleet, task
from upnext.core import entry
from upnext.core.keys import SCHEMA
from upnext.engine.worker.questions import Question

GARBAGE: list[tuple[str | bytes, ...]] = [
    ("what", "ever"),
    ("p1", b"not json"),
    ("p1", b"{}", "m", b"{broken"),
    ("p1", b"{}", "m", b"[1]"),
    ("p1", b"\xff\xfe"),
    ("p1", b"[]"),
    ("p1", b"null"),
    ("p1", b"{}", "m", b'{"a":"one","c":[]}'),
    ("px", b"{}"),
    ("m", b"{}", "p1", b"{}"),
]


async def echo(number: int = 1) -> int:
    return number


@pytest.mark.parametrize("lane", ["n", "h", "b", "x"])
async def test_garbage_in_every_lane(
    redis_url: str, namespace: str, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.worker(task(echo))
        for fields in GARBAGE:
            await fleet.command("XADD", fleet.keys.stream("echo", lane), "*", *fields)
        await fleet.command("SPUBLISH", fleet.keys.bell, "b")

        async def gone() -> bool:
            return not await fleet.lengths("echo")

        await fleet.until(gone)
        assert (await fleet.run("echo", number=7)).value == b"7"
        assert await fleet.leaks() == []
        assert "a runner failed" not in caplog.text


async def test_an_entry_of_a_newer_schema_is_left_alone(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        life = await fleet.worker(task(echo))
        stream = fleet.keys.stream("echo", "n")
        await fleet.command("XADD", stream, "*", f"p{SCHEMA + 1}", b"\x01", "m", b'{"new":1}')
        assert (await fleet.run("echo", number=2)).value == b"2"
        for _ in range(3):
            life.runtime._fetcher._open.ask(Question.PENDING)
            assert (await fleet.run("echo", number=2)).value == b"2"
        assert await fleet.lengths("echo") == "n1"
        await life.stop()
        assert await fleet.lengths("echo") == "b1"
        [[_, fields]] = await fleet.command("XRANGE", fleet.keys.stream("echo", "b"), "-", "+")
        assert fields[:2] == [b"p%d" % (SCHEMA + 1), b"\x01"]
        assert entry.decode_meta(fields[3]).job_id is not None


async def test_noise_on_the_bell(redis_url: str, namespace: str) -> None:
    async with Fleet(redis_url, namespace) as fleet:
        await fleet.scheduler()
        await fleet.worker(task(echo))
        for noise in (
            b"",
            b"\xff\xfe",
            b"?",
            b"zebra",
            b"t",
            b"tunheard-of",
            b"c",
            b"cnobody:n1-0",
            b"cno id",
            b"b",
            b"p",
            b"d",
        ):
            await fleet.command("SPUBLISH", fleet.keys.bell, noise)
        assert (await fleet.run("echo", number=3)).value == b"3"
