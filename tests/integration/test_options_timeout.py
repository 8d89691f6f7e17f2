"""`timeout` is true for async and thread tasks; what can't be stopped is recorded, and its process is to be replaced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.service import serving
from tests.support.waiting import PATIENCE, wait_until, wait_until_async
from upnext.core.outcome import FailureReason, JobStatus
from upnext.engine import local
from upnext.engine.worker import executor, middleware


async def test_async_and_thread_tasks_are_recorded_as_timed_out(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=3)
    stop = threading.Event()
    cleaned: list[str] = []

    @worker.task(timeout=0.2)
    async def sleeps() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("async")

    @worker.task(timeout=0.2)
    def blocks() -> None:
        stop.wait(60)

    @worker.task(timeout=0.2, retries=1, retry_delay=0.01)
    async def second_time_lucky() -> int:
        if upnext.get_current_context().attempt == 1:
            await asyncio.sleep(60)
        return 2

    @worker.task(timeout=30)
    async def neighbour() -> str:
        await asyncio.sleep(1)
        return "unharmed"

    async with serving(worker, redis_url, namespace):
        beside = await neighbour.submit()
        for task in (sleeps, blocks):
            with pytest.raises(upnext.TaskTimeoutError) as caught:
                await task.wait(wait_timeout=30)
            end = caught.value.task_result
            assert (end.failure_reason, end.error) == (
                FailureReason.TIMEOUT,
                "TimeoutError: ran longer than its timeout of 0.2 s",
            )
            assert end.completed_at is not None
            assert end.started_at is not None
            assert 0.2 <= (end.completed_at - end.started_at).total_seconds() + 0.002 < 2 * PATIENCE
        assert cleaned == ["async"]
        assert (await second_time_lucky.wait(wait_timeout=30)).attempts == 2
        assert (await beside.result(30)).value == "unharmed"
        stop.set()


async def test_a_thread_waits_for_its_turn_without_its_clock_running(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4, sync_pool_size=1)
    together: list[int] = []
    most: list[int] = []
    pause = threading.Event()

    @worker.task(timeout=2.5)
    def slow() -> str:
        together.append(1)
        most.append(len(together))
        pause.wait(1.0)
        together.pop()
        return threading.current_thread().name

    async with serving(worker, redis_url, namespace):
        futures = [await slow.submit() for _ in range(4)]
        names = {await future.value(30) for future in futures}
        assert max(most) == 1, "sync_pool_size bounds them"
        assert len(names) == 1


async def test_what_does_not_heed_its_cancel_is_recorded_and_reported(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.2)
    monkeypatch.setattr(middleware, "GRACE_S", 0.2)
    stuck: list[tuple[str, str]] = []
    monkeypatch.setattr(local._LocalHost, "stuck", lambda _, job_id, reason: stuck.append((job_id, reason)))
    worker = upnext.Worker("w", concurrency=2)
    let_go, stop = asyncio.Event(), threading.Event()
    began = asyncio.Event()

    async def stubborn() -> str:
        began.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return "too late to matter"

    @worker.task(timeout=0.2)
    async def late() -> str:
        return await stubborn()

    @worker.task
    async def cancelled() -> str:
        return await stubborn()

    @worker.task(timeout=0.2)
    def thread() -> None:
        stop.wait(60)

    async with serving(worker, redis_url, namespace):
        first = await late.submit()
        with pytest.raises(upnext.TaskTimeoutError):
            await first.result(30)
        began.clear()
        second = await cancelled.submit()
        await began.wait()
        await second.cancel()
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await second.result(30)
        assert caught.value.task_result.status is JobStatus.CANCELLED
        let_go.set()
        third = await thread.submit()
        with pytest.raises(upnext.TaskTimeoutError):
            await third.result(30)
        expected = [(first.job_id, "timeout"), (second.job_id, "cancelled"), (third.job_id, "timeout")]
        await wait_until_async(lambda: stuck == expected, 10, "all three to be reported")
        assert (await thread.submit()).job_id, "it goes on"
        with pytest.raises(upnext.TaskTimeoutError):
            await first.result(60)
        stop.set()


@pytest.mark.parametrize("hooked", [False, True])
async def test_what_a_job_makes_of_its_cancel_changes_nothing(redis_url: str, namespace: str, hooked: bool) -> None:
    """It returns a value, or raises an error of its own, after its timeout or its cancel: it has timed out, or is cancelled."""
    worker = upnext.Worker("w", concurrency=4)
    began = asyncio.Event()
    reported: list[str] = []
    hooks: dict[str, Any] = {}
    if hooked:
        hooks = {"on_success": lambda: reported.append("success"), "on_failure": lambda: reported.append("failure")}

    async def body(how: str) -> str:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("too late") from None
        return "too late"

    @worker.task(timeout=0.2, **hooks)
    async def late(how: str) -> str:
        return await body(how)

    @worker.task(**hooks)
    async def stopped(how: str) -> str:
        return await body(how)

    async with serving(worker, redis_url, namespace):
        text = "TimeoutError: ran longer than its timeout of 0.2 s"
        for how, error in (("returns", text), ("raises", f"{text}, and then raised ValueError: too late")):
            with pytest.raises(upnext.TaskTimeoutError) as caught:
                await late.wait(how, wait_timeout=30)
            assert caught.value.task_result.error == error
            began.clear()
            future = await stopped.submit(how)
            await began.wait()
            await future.cancel()
            with pytest.raises(upnext.TaskExecutionError) as end:
                await future.result(30)
            assert end.value.task_result.status is JobStatus.CANCELLED
        assert reported == (["failure"] * 2 if hooked else [])


async def test_a_process_that_nobody_replaces_says_so_once_and_goes_on(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.1)
    monkeypatch.setattr(middleware, "GRACE_S", 0.1)
    worker = upnext.Worker("w", concurrency=2)
    stop = threading.Event()

    @worker.task(timeout=0.1)
    def blocks() -> None:
        stop.wait(60)

    @worker.task
    def other() -> str:
        return "served"

    def lines() -> list[str]:
        return [record.message for record in caplog.records if "can't be stopped" in record.message]

    async with serving(worker, redis_url, namespace):
        future = await blocks.submit()
        with pytest.raises(upnext.TaskTimeoutError):
            await future.result(30)
        await wait_until_async(lines)
        assert [(await other.wait(wait_timeout=30)).value for _ in range(3)] == ["served"] * 3
        line = f"{future.job_id} can't be stopped (timeout): it is recorded as ended and goes on in this process"
        assert lines() == [line]
        stop.set()


SERVICE = '''
    """A thread that can't be stopped, beside jobs that are unharmed."""
    import asyncio, os, time
    import upnext

    worker = upnext.Worker("w", concurrency=2, prefetch=2)

    @worker.task(timeout=0.3)
    def blocks() -> None:
        time.sleep(600)

    @worker.task
    async def who(pause: float = 0.0) -> tuple[int, int, int]:
        await asyncio.sleep(pause)
        ctx = upnext.get_current_context()
        return os.getpid(), ctx.crashes, ctx.attempt
'''


def test_the_child_is_replaced_and_its_neighbours_are_uncharged(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = daemon(SERVICE, redis_url=redis_url, namespace=namespace, workers=1)
    before = running.worker_pids()["worker-1"]
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    blocks, who = _handles()
    blocked = blocks.submit_sync()
    beside = who.submit_sync(7.0)
    with pytest.raises(upnext.TaskTimeoutError):
        blocked.result_sync(60)
    waiting = [who.submit_sync(0.5) for _ in range(4)]
    wait_until(lambda: running.worker_pids().get("worker-1", before) != before, 40, "the child to be replaced")
    ends = [future.result_sync(40) for future in [beside, *waiting]]
    assert all(end.crashes == 0 and end.attempts == 1 for end in ends)
    assert ends[0].value[0] == before, "what ran beside it was let finish"


def _handles() -> tuple[Any, Any]:
    worker = upnext.Worker("handles")

    @worker.task
    def blocks() -> None: ...

    @worker.task
    async def who(pause: float = 0.0) -> tuple[int, int, int]:
        return 0, 0, 0

    return blocks, who
