"""What submitted a job, where that was no job: it stays with the job, from the queue to whichever end."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

import upnext
from tests.integration.lua_harness import CONSUMER, Workbench, task
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.cli import json_views
from upnext.cli.jobs import fields
from upnext.core.submission import Submission
from upnext.engine.calls import client
from upnext.engine.requests import CURRENT_REQUEST
from upnext.engine.views import jobs

OWN = {"via": "POST /orders", "labels": {"a": "b"}}


def seen(work: Workbench, job_id: str) -> tuple[str, str | None, dict[str, str]]:
    one = jobs.job(work.broker, work.keys, job_id)
    shape = json_views.job(one)
    assert shape["via"] == dict(fields(one))["submitted by"] == one.via
    return one.status, one.via, one.labels


def test_from_the_queue_to_every_end(work: Workbench) -> None:
    work.register(task("ship", max_crashes=1))

    def of(status: str) -> tuple[str, str, dict[str, str]]:
        return status, "POST /orders", {"a": "b"}

    one = work.submit("ship", own=OWN)
    assert seen(work, one) == of("queued")
    taken = work.take()
    assert seen(work, one) == of("running")
    assert work.hand_back(taken) == 1
    taken = work.take()
    work.reap(CONSUMER, taken, charge="crash")
    assert seen(work, one) == of("dead")
    delayed = work.submit("ship", own=OWN, delay_s=60.0)
    assert seen(work, delayed) == of("delayed")
    assert work.cancel(delayed) == client.ENDED
    assert seen(work, delayed) == of("cancelled")
    plain = work.submit("ship")
    assert seen(work, plain)[1] is None
    [replaced] = work.broker.run(
        client.replace(work.keys, Submission("ship", b"{}", idempotency_key="k", replace=True, own=OWN), None, "n1")
    )
    [_] = work.broker.run(
        client.replace(work.keys, Submission("ship", b"{}", idempotency_key="k", replace=True), None, "n2")
    )
    assert seen(work, str(replaced)) == of("cancelled")


async def test_of_jobs_that_run(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    placed = worker.event("placed")
    inner_ids: list[str] = []
    go = asyncio.Event()

    @worker.task
    async def inner() -> None: ...

    @worker.task
    async def work(fail: bool) -> None:
        inner_ids.append((await inner.submit()).job_id)
        if fail:
            raise ValueError("no")

    @worker.task
    async def long() -> None:
        await go.wait()

    @placed.on
    async def book(order_id: str) -> None: ...

    @worker.cron("* * * * * *")
    async def tidy() -> None: ...

    async def via(future: upnext.Future[None]) -> tuple[str | None, str | None]:
        with pytest.raises(upnext.TaskExecutionError) if future in failing else contextlib.nullcontext():
            await future.value(timeout=30)
        one = await upnext.job(future.job_id)
        return one.via, one.parent_id

    async def come(name: str, *expected: str) -> None:
        """Its jobs come to be of these and no others."""

        async def are_there() -> bool:
            found = {one.via for one in await upnext.jobs(task=name, state="done")}
            assert found <= {*expected, None}
            return found >= set(expected)

        await wait_until_async(are_there, 30, f"jobs of {name}")

    async with serving(worker, redis_url, namespace):
        token = CURRENT_REQUEST.set(("front", {"method": "POST", "route": SimpleNamespace(path="/orders/{number}")}))
        good, bad, stopped = await work.submit(False), await work.submit(True), await long.submit()
        failing = [bad, stopped]
        await placed.send(order_id="A1")
        CURRENT_REQUEST.reset(token)
        outside = await work.submit(False)
        assert await via(good) == await via(bad) == ("POST /orders/{number}", None)
        assert await stopped.cancel()
        assert await via(stopped) == ("POST /orders/{number}", None)
        assert await via(outside) == (None, None)
        assert {(await upnext.job(one)).via for one in inner_ids} == {None}, "their job has submitted them"
        await come("placed.book", "POST /orders/{number}")
        await placed.send(order_id="A2")
        await come("placed.book", "POST /orders/{number}", "event placed")
        await come("tidy", "cron tidy")
        CURRENT_REQUEST.set(("front", {"method": "PUT"}))
        await upnext.schedule("often", inner, every=1)
        await come("inner", "schedule often")
