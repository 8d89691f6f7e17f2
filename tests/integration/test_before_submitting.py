"""Hooks before a submit, to what their jobs have of them at last."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator

import pytest

import upnext
from tests.support.service import serving
from upnext import before_submitting

TENANT = contextvars.ContextVar("tenant", default="none")


@pytest.fixture(autouse=True)
def tenants() -> Iterator[None]:
    @upnext.before_submit
    def _of_tenant(job: upnext.NewJob) -> None:
        job.labels["tenant"] = TENANT.get()

    yield
    before_submitting.EVERYWHERE.clear()


async def test_labels_reach_the_jobs(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    ran: asyncio.Queue[tuple[str, dict[str, str]]] = asyncio.Queue()

    def note(what: str) -> None:
        ran.put_nowait((what, upnext.get_current_context().labels))

    @worker.task
    async def charge(order_id: str) -> None:
        note(order_id)

    placed = worker.event("placed")

    @placed.on
    async def book(order_id: str) -> None:
        note(order_id)

    @placed.on
    async def pack(order_id: str) -> None:
        note(order_id)

    async def next_ones(count: int) -> list[tuple[str, dict[str, str]]]:
        return sorted([await asyncio.wait_for(ran.get(), 20) for _ in range(count)])

    async with serving(worker, redis_url, namespace):
        TENANT.set("acme")
        await charge.submit("a")
        await asyncio.to_thread(charge.submit_sync, "b")
        await charge.submit_many([("c",), ("d",)])
        await charge.options(delay=0.01, labels={"kind": "late"}).submit("e")
        later = await charge.submit_idempotent("k", "f")
        await upnext.submit("charge", "g")
        expected = [(name, {"tenant": "acme"}) for name in "abcdfg"]
        assert await next_ones(7) == sorted([*expected, ("e", {"kind": "late", "tenant": "acme"})])
        assert (await upnext.job(later.job_id)).labels == {"tenant": "acme"}
        assert await placed.send(order_id="h") == 2
        assert await upnext.send("placed", order_id="i") == 2
        assert await asyncio.to_thread(upnext.send_sync, "placed", order_id="j") == 2
        assert await asyncio.to_thread(placed.send_idempotent_sync, "once", order_id="k") == 2
        assert await next_ones(8) == [(name, {"tenant": "acme"}) for name in "hhiijjkk"]


async def test_a_schedule_has_the_labels_of_the_program_that_made_it(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    ran: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    @worker.task
    async def report() -> None:
        ran.put_nowait(upnext.get_current_context().labels)

    async with serving(worker, redis_url, namespace):
        TENANT.set("acme")
        await upnext.schedule("often", report, every=1)
        TENANT.set("other")
        assert await asyncio.wait_for(ran.get(), 30) == {"tenant": "acme", "schedule": "often"}
        await upnext.remove_schedule("often")


async def test_what_a_job_submits_can_have_its_labels(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.on_start
    def _of_the_job(ctx: upnext.Context) -> None:
        TENANT.set(ctx.labels["tenant"])

    @worker.task
    async def inner() -> str:
        return upnext.get_current_context().labels["tenant"]

    @worker.task
    async def outer() -> str:
        return (await inner.wait()).value

    @worker.task
    def threaded() -> str:
        return inner.wait_sync().value

    async with serving(worker, redis_url, namespace):
        TENANT.set("acme")
        one = await outer.submit()
        TENANT.set("other")
        two = await threaded.submit()
        assert [await one.value(20), await two.value(20)] == ["acme", "other"]
