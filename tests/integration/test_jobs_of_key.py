"""jobs_of_key: a job by its idempotency key, while it holds that and after its end."""

from __future__ import annotations

import asyncio

import pytest

import upnext
from tests.integration.lua_harness import Workbench, task
from tests.support.service import serving
from upnext.engine.calls import admin, client
from upnext.engine.views import jobs
from upnext.errors import JobNotFoundError, UsageError

WEEK_MS = 7 * 86_400_000


def found(work: Workbench, key: str = "k", of: str | None = None) -> str | None:
    try:
        return jobs.id_of_key(work.broker, work.keys, key, of)
    except JobNotFoundError:
        return None


def ttl_ms(work: Workbench, key: str) -> int:
    return work.broker.command("PTTL", work.keys.ended_prefix + key)


def test_while_it_is_queued_and_running_and_when_it_has_ended(work: Workbench) -> None:
    work.register(task("ship"), task("pack"))
    assert found(work) is None
    job_id = work.submit("ship", idempotency_key="k")
    assert found(work) == found(work, of="ship") == job_id
    assert found(work, of="pack") is None
    one = work.take()
    assert found(work) == job_id
    work.finish(one, ttl_ms=50_000)
    assert found(work) == job_id
    assert 0 < ttl_ms(work, "ship:k") <= 50_000, "as long as its result"
    assert work.leaks() == []


def test_the_one_that_holds_it_now_comes_before_the_one_that_has_ended(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", idempotency_key="k")
    work.finish(work.take())
    second = work.submit("ship", idempotency_key="k")
    assert found(work) == second
    assert work.cancel(second) == client.ENDED
    assert found(work) == second


def test_a_dead_letter_is_known_for_a_week(work: Workbench) -> None:
    work.register(task("ship"))
    job_id = work.submit("ship", idempotency_key="k")
    work.fail(work.take(), ttl_ms=1000)
    assert found(work) == job_id
    assert WEEK_MS - 60_000 < ttl_ms(work, "ship:k") <= WEEK_MS
    work.broker.run(admin.retry_dead(work.keys, [job_id]))
    assert found(work) == job_id


def test_a_job_whose_result_is_not_kept_leaves_nothing(work: Workbench) -> None:
    work.register(task("ship"))
    work.submit("ship", idempotency_key="k")
    work.finish(work.take(), ttl_ms=0)
    assert found(work) is None
    work.submit("ship", idempotency_key="k")
    assert work.broker.run(admin.purge_queued(work.keys, "ship", "n")) == 1
    assert found(work) is None


def test_a_key_of_several_tasks_and_of_handlers(work: Workbench) -> None:
    work.register(task("ship"), task("pack"), task("placed.one", event="placed"), task("placed.two", event="placed"))
    ship, pack = (work.submit(name, idempotency_key="k") for name in ("ship", "pack"))
    with pytest.raises(UsageError, match=f"{pack}, {ship}; name the task"):
        found(work)
    assert found(work, of="pack") == pack
    sent = work.broker.send("placed", b"{}", (), idempotency_key="e")
    assert found(work, "e", "placed.two") in sent


async def test_by_the_public_interface(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def double(number: int) -> int:
        return 2 * number

    async with serving(worker, redis_url, namespace):
        result = await double.wait_idempotent("order-1", 21)
        one = await upnext.job(key="order-1")
        assert (one.job_id, one.value) == (result.job_id, 42)
        assert (await asyncio.to_thread(upnext.job_sync, key="order-1", task="double")).job_id == result.job_id
        again = await double.submit_idempotent("order-1", 1)
        assert (await upnext.job(key="order-1")).job_id == again.job_id, "the key was free"
        with pytest.raises(JobNotFoundError, match="no job of the key 'order-2'"):
            await upnext.job(key="order-2")
        for wrong in ({}, {"key": ""}, {"key": "k" * 600}, {"task": "double"}):
            with pytest.raises(UsageError):
                await upnext.job(**wrong)
        with pytest.raises(UsageError, match="one of them"):
            await upnext.job(result.job_id, key="order-1")
