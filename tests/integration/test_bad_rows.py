"""Rows that a scheduler can't read: they are passed over and named, and it goes on."""

from __future__ import annotations

import asyncio

import pytest
import redis

import upnext
from tests.support.service import serving
from tests.support.waiting import given
from upnext.core.keys import Keys

VALUES = [b"{broken", b"", b"null", b"[]", b"{}", b"7", b"\xff\xfe", b'{"schema":99}', b'{"schedule":5,"missed":[]}']
NAMES = [b"bad\xff\xfe", *(b"bad%d" % at for at in range(len(VALUES)))]


@pytest.mark.parametrize("key", ["crons", "consumers"])
async def test_the_scheduler_goes_on_beside_rows_that_it_cannot_read(
    redis_url: str, namespace: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = getattr(Keys(namespace), key)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(name, mapping=dict(zip(NAMES, [b"{}", *VALUES], strict=True)))
    worker = upnext.Worker("w")

    @worker.task
    async def good(number: int) -> int:
        return number

    async with serving(worker, redis_url, namespace), asyncio.timeout(given(20)):
        job = await good.options(delay=0.1).submit(3)
        assert (await job.result()).value == 3
    named = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert any("bad0" in message and "passed over" in message for message in named)


async def test_a_cron_ticks_on_beside_bad_rows_and_after_a_bad_cursor(redis_url: str, namespace: str) -> None:
    keys, ticks = Keys(namespace), asyncio.Queue[int]()
    worker = upnext.Worker("w")

    @worker.cron("* * * * * *")
    async def every_second() -> None:
        ticks.put_nowait(1)

    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.crons, mapping=dict(zip(NAMES, [b"{}", *VALUES], strict=True)))
        async with serving(worker, redis_url, namespace), asyncio.timeout(given(20)):
            await ticks.get()
            client.hset(keys.cursors, "every_second", b"no time")
            while not ticks.empty():
                ticks.get_nowait()
            await ticks.get()
            await ticks.get()
