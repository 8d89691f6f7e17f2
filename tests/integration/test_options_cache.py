"""cache_key and cache_ttl: a hit returns the stored result without running."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import wait_until_async


async def test_a_hit_does_not_run(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    ran: list[Any] = []

    @worker.task(cache_key="user:{user_id}:{day}", cache_ttl=30, on_success=lambda: ran.append("hook"))
    async def lookup(user_id: int, day: date = date(2026, 1, 2)) -> dict[str, date]:
        ran.append(user_id)
        return {"day": day}

    @worker.task(cache_key=lambda name, **rest: name.lower())
    def by_function(name: str, **rest: int) -> int:
        ran.append(name)
        return rest["value"]

    @worker.task(cache_key="fails", cache_ttl=30)
    async def fails() -> None:
        ran.append("fails")
        raise ValueError

    @worker.task(cache_key=lambda: str(1 / 0))
    async def broken_key() -> str:
        ran.append("broken")
        return "ran"

    async with serving(worker, redis_url, namespace) as running:
        first = await lookup.wait(1, wait_timeout=20)
        again = await lookup.wait(user_id=1, day=date(2026, 1, 2), wait_timeout=20)
        assert first.value == again.value == {"day": date(2026, 1, 2)}
        assert again.job_id != first.job_id
        assert ran == [1, "hook"]
        await lookup.wait(2, wait_timeout=20)
        assert ran == [1, "hook", 2, "hook"]
        key = running.keys.cache("6:lookup=user:1:1:10:2026-01-02")
        left_ms: Any = await running.command("PTTL", key)
        assert 20_000 < left_ms <= 30_000
        ran.clear()
        assert (await by_function.wait("A", value=1, wait_timeout=20)).value == 1
        assert (await by_function.wait("a", value=2, wait_timeout=20)).value == 1
        assert ran == ["A"]
        default_ttl: Any = await running.command("PTTL", running.keys.cache("11:by_function=a"))
        assert 590_000 < default_ttl <= 600_000, "result_ttl by default"
        ran.clear()
        for _ in range(2):
            with pytest.raises(upnext.TaskExecutionError):
                await fails.wait(wait_timeout=20)
            await broken_key.wait(wait_timeout=20)
        assert ran == ["fails", "broken"] * 2, "a failure is not cached; without a key it just runs"


async def test_it_runs_again_when_the_time_is_over(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    ran: list[int] = []

    @worker.task(cache_key="{n}", cache_ttl=0.3)
    async def count(n: int) -> int:
        ran.append(n)
        return len(ran)

    async with serving(worker, redis_url, namespace) as running:
        assert (await count.wait(1, wait_timeout=20)).value == 1
        assert (await count.wait(1, wait_timeout=20)).value == 1

        async def expired() -> bool:
            return not await running.command("EXISTS", running.keys.cache("5:count=1:1"))

        await wait_until_async(expired, 10)
        assert (await count.wait(1, wait_timeout=20)).value == 2


async def test_long_keys_are_hashed(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    ran: list[str] = []

    @worker.task(cache_key="{text}", cache_ttl=30)
    async def size(text: str) -> int:
        ran.append(text)
        return len(text)

    async with serving(worker, redis_url, namespace) as running:
        for text in ("x" * 5000, "x" * 5000, "x" * 4999 + "y"):
            assert (await size.wait(text, wait_timeout=20)).value == 5000
        assert len(ran) == 2
        found: Any = await running.command("KEYS", running.keys.cache_prefix.replace("{", "\\{") + "*")
        assert all(len(key) < 200 for key in found)


async def test_no_task_and_no_values_read_what_others_cached(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task(name="user", cache_key=lambda key: key, cache_ttl=30)
    async def user(key: str) -> str:
        return f"user {key}"

    @worker.task(name="user:admin", cache_key=lambda key: key, cache_ttl=30)
    async def admin(key: str) -> str:
        return f"admin {key}"

    @worker.task(cache_key="{a}:{b:>{width}}", cache_ttl=30)
    async def pair(a: str, b: str, width: int = 1) -> list[str]:
        return [a, b]

    async with serving(worker, redis_url, namespace):
        assert (await admin.wait("1", wait_timeout=20)).value == "admin 1"
        assert (await user.wait("admin:1", wait_timeout=20)).value == "user admin:1"
        for a, b in (("x:y", "z"), ("x", "y:z"), ("", "1:x"), ("1", "x"), ("x}", "{a}")):
            assert (await pair.wait(a, b, wait_timeout=20)).value == [a, b]


async def test_a_long_key_is_not_mistaken_for_the_text_of_its_digest(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task(cache_key=lambda text: text, cache_ttl=30)
    async def echo(text: str) -> str:
        return text[:100]

    async with serving(worker, redis_url, namespace):
        assert (await echo.wait("x" * 5000, wait_timeout=20)).value == "x" * 100
        for mark in ("sha256-", "#", "=#", ""):
            text = mark + hashlib.sha256(b"x" * 5000).hexdigest()
            assert (await echo.wait(text, wait_timeout=20)).value == text
