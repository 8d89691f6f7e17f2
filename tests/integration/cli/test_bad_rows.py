"""Every key of the map, wrong in every way: each harms itself alone, jobs of other tasks run, crons tick, and the command line lists.

Rows come from other versions, from hands, from half-restored dumps.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

import upnext
from tests.integration.cli.conftest import Cli
from tests.support.service import serving
from tests.support.waiting import given, wait_until_async
from upnext.core.keys import ROWS, Key, Keys

HUGE = b"x" * 300_000
NESTED = b"[" * 3000 + b"]" * 3000

VALUES: list[bytes] = [
    b"{broken",
    b"",
    b"null",
    b"[]",
    b"{}",
    b"7",
    b'"text"',
    b"\xff\xfe",
    b'{"schema":99,"kind":"saga","tasks":7,"daemon":[],"since_ms":"x","schedule":5,"missed":"new","timezone":[],"options":[],"event":[],"owner":3}',
    b'{"concurrency":"x","rate":null,"period_s":"x","declares":[],"serves":{},"service":[],"task":7,"last_seen_ms":"x"}',
    b'{"concurrency":{},"rate":"x","period_s":{}}',
    NESTED,
    HUGE,
]
NAMES: list[bytes] = [
    b"other",
    b"bad\xff\xfe",
    b"",
    b"no id",
    b"other:n1-0",
    b"other:zzz",
    b"a" * 2000,
    b"x\x1b[31m\n\xe2\x80\xae:n2-0",
]
SCORES = [0.0, -1.0, 1e300, float("inf"), float("-inf"), 4e15]


def name_of(keys: Keys, attribute: str, row: Key) -> str:
    rest = {
        "stream_prefix": "other:n",
        "result_prefix": "other:n1-0",
        "event_prefix": "placed",
        "rate_prefix": "7",
    }.get(attribute, "other:n1-0")
    return f"{keys.prefix}{row.name}{rest if row.variable else ''}"


def spoil(client: redis.Redis, keys: Keys, attribute: str, row: Key) -> None:
    """Rows of the right type with wrong content."""
    key: Any = name_of(keys, attribute, row)
    match row.type:
        case "string":
            client.set(key, b"\xff garbage")
        case "hash":
            for at, value in enumerate(VALUES):
                client.hset(key, b"bad%d" % at, value)
            for at, name in enumerate(NAMES):
                client.hset(key, name, VALUES[at % len(VALUES)])
        case "zset":
            for at, name in enumerate(NAMES):
                client.zadd(key, {name: SCORES[at % len(SCORES)]})
        case "set":
            client.sadd(key, *NAMES)
        case "stream":
            client.xadd(key, {b"what": b"ever"})
            client.xadd(key, {b"p1": NESTED, b"m": b"{broken"})
            client.xadd(key, {b"p1": HUGE, b"m": b'{"i":7,"a":"x"}'})
            client.xadd(key, {b"p99": b"\x01", b"m": b'{"new":1}'})
        case "channel":
            pass


def another_type(client: redis.Redis, keys: Keys, attribute: str, row: Key) -> None:
    key: Any = name_of(keys, attribute, row)
    client.delete(key)
    if row.type == "string":
        client.rpush(key, "x")
    else:
        client.set(key, "\x1b[31mwrong")


OF_CRONS = {
    *("epoch", "schema", "leader", "crons", "cursors", "fired", "lapsed", "paused", "limits", "stats", "stream_prefix"),
}
"""Keys that a tick needs: a cron of another name goes on."""
CASES = [
    pytest.param(attribute, how, id=f"{attribute}-{how.__name__}")
    for attribute, row in ROWS.items()
    if row.type not in ("channel", "any")
    for how in (spoil, another_type)
]


@pytest.mark.parametrize("moment", ["before", "while"])
@pytest.mark.parametrize(("attribute", "how"), CASES)
async def test_a_bad_row_harms_itself_alone(
    redis_url: str,
    namespace: str,
    attribute: str,
    how: Any,
    moment: str,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys, row = Keys(namespace), ROWS[attribute]
    client = redis.Redis.from_url(redis_url)
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    worker = upnext.Worker("w", concurrency=4)

    @worker.task
    async def good(number: int) -> int:
        return number

    @worker.task
    async def other() -> None: ...

    ticks = asyncio.Event()

    @worker.cron("* * * * * *")
    async def ticking() -> None:
        ticks.set()

    if moment == "before":
        how(client, keys, attribute, row)
    async with serving(worker, redis_url, namespace):
        assert (await good.submit(1)) is not None
        if moment == "while":
            await good.wait(0)
            how(client, keys, attribute, row)
            ticks.clear()
        async with asyncio.timeout(given(10)):
            if attribute in OF_CRONS:
                await ticks.wait()
            assert (await good.wait(2)).value == 2
            assert await (await good.options(delay=0.05).submit(3)).value() == 3
        failures = []
        for command in ("tasks", "jobs", "list", "dead list", "cron list", "hosts"):
            code = await asyncio.to_thread(cli, *command.split())
            if code != 0:
                failures.append((command, code, cli.err))
            if not cli.out.replace("\n", "").isprintable():
                failures.append((command, "raw", ""))
        assert not failures
        if how is another_type and moment == "before" and (not row.variable or attribute == "stream_prefix"):
            await wait_until_async(lambda: f"{name_of(keys, attribute, row)} held a " in caplog.text)
