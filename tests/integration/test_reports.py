"""Reports of daemons: when a scheduler writes them, and what a service in one process says."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from typing import Any

import pytest

import upnext
from tests.support.serving import serving
from tests.support.waiting import given, wait_until_async
from upnext.cli import json_views
from upnext.engine.calls import daemons as calls
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import daemons, jobs


async def test_a_service_in_one_process_reports_as_a_daemon_with_one_slot(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("shop", concurrency=2)
    go = asyncio.Event()

    @worker.task
    async def hold() -> None:
        await go.wait()

    @worker.task
    async def fail() -> None:
        raise ValueError("no")

    @worker.task(retries=1, retry_delay=0)
    async def fail_once() -> None:
        if upnext.get_current_context().attempt == 1:
            raise ValueError("not yet")

    with closing(SyncQueueClient(redis_url, namespace)) as client:

        def hosts() -> list[dict[str, Any]]:
            return [json_views.host(one) for one in daemons.daemons(client, client.keys, fresh_s=1.0)]

        async def running() -> dict[str, Any] | None:
            found = await asyncio.to_thread(hosts)
            return found[0] if found and found[0]["slots"][0]["in_flight"] else None

        async with serving(redis_url, namespace, worker, name="shop-service"):
            failed = await fail.submit()
            with pytest.raises(upnext.TaskExecutionError):
                await failed.result(timeout=given(20))
            await (await fail_once.submit()).result(timeout=given(20))
            job = await hold.submit()
            host = await wait_until_async(running, 20, "the running job")
            assert host
            assert (host["name"], host["state"], host["version"]) == ("shop-service", "running", upnext.__version__)
            [slot] = host["slots"]
            assert (slot["slot"], slot["role"], slot["pid"], slot["state"]) == ("run", "worker", os.getpid(), "READY")
            assert [one["job_id"] for one in slot["in_flight"]] == [job.job_id]
            assert (slot["jobs_done"], slot["jobs_failed"]) == (1, 1)
            assert slot["rss_bytes"] > 1 << 20
            found = await asyncio.to_thread(jobs.job, client, client.keys, job.job_id)
            place = json_views.job(found)["place"]
            assert place == {
                "host": host["host"],
                "daemon": host["daemon"],
                "slot": "run",
                "pid": os.getpid(),
                "generation": None,
            }
            go.set()
            await job.result(timeout=given(20))
        assert await asyncio.to_thread(hosts) == []


async def test_a_look_makes_a_daemon_report(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upnext.engine.scheduler.reports.SETTLING_S", 0.0)
    worker = upnext.Worker("shop")

    @worker.task
    async def hold() -> None: ...

    with closing(SyncQueueClient(redis_url, namespace)) as client:

        def seen_ms() -> int:
            _, _, found = client.run(calls.list_daemons(client.keys, ""))
            return found[0].seen_ms if found else 0

        async def reported(after_ms: int) -> int:
            async def look() -> int:
                now_ms = await asyncio.to_thread(seen_ms)
                return now_ms if now_ms > after_ms else 0

            return await wait_until_async(look, 20, "a report")

        async with serving(redis_url, namespace, worker):
            first = await reported(0)
            assert await asyncio.to_thread(client.run, calls.watch_daemons(client.keys))
            second = await reported(first)
            await reported(second)  # with a beat
