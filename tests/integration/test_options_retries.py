"""Retries, what is retried, when; lifecycle hooks; how long results are kept."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import PATIENCE
from upnext.core.outcome import JobStatus
from upnext.errors import ServiceError


class FlakyError(Exception):
    """Worth another attempt."""


async def test_retries_run_out_and_back_off(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    began: list[float] = []

    @worker.task(retries=3, retry_delay=0.1, retry_backoff=2.0)
    async def fails() -> None:
        began.append(asyncio.get_running_loop().time())
        raise FlakyError("no luck")

    async with serving(worker, redis_url, namespace) as running:
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await fails.wait(wait_timeout=30)
        end = caught.value.task_result
        assert (end.status, end.attempts, len(began)) == (JobStatus.FAILED, 4, 4)
        gaps = [later - earlier for earlier, later in pairwise(began)]
        for gap, base in zip(gaps, (0.1, 0.2, 0.4), strict=True):
            assert gap >= base * 0.8 - 0.002, "never early, jitter included"
            assert gap <= base * 1.2 + 1.0 * PATIENCE
        assert await running.command("ZSCORE", running.keys.dead, end.job_id) is not None, "kept as a dead letter"


async def test_which_errors_are_retried(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    @worker.task(retries=2, retry_delay=0.01, retry_on=FlakyError)
    async def only_flaky(error: str) -> None:
        count(f"only {error}")
        raise FlakyError if error == "flaky" else KeyError("k")

    @worker.task(retries=2, retry_delay=0.01, no_retry_on=(KeyError,))
    async def not_keys(error: str) -> None:
        count(f"not {error}")
        raise FlakyError if error == "flaky" else KeyError("k")

    @worker.task(retries=2, retry_on=FlakyError, retry_delay=60)
    async def asks() -> int:
        ctx = upnext.get_current_context()
        count("asks")
        if ctx.attempt < 3:
            raise upnext.Retry(delay=0.05)
        return ctx.attempt

    async with serving(worker, redis_url, namespace):
        for error in ("flaky", "key"):
            for task in (only_flaky, not_keys):
                with pytest.raises(upnext.TaskExecutionError):
                    await task.wait(error, wait_timeout=30)
        result = await asks.wait(wait_timeout=30)
        assert (result.value, result.attempts) == (3, 3)
        assert calls == {"only flaky": 3, "only key": 1, "not flaky": 3, "not key": 1, "asks": 3}


async def test_hooks_get_what_they_take(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)
    seen: list[tuple[Any, ...]] = []

    def started(ctx: upnext.Context) -> None:
        seen.append(("start", ctx.attempt, ctx.function))

    async def succeeded(ctx: upnext.Context, result: Any) -> None:
        await asyncio.sleep(0)
        seen.append(("success", ctx.job_id, result))

    def failed(ctx: upnext.Context, error: BaseException) -> None:
        seen.append(("failure", ctx.attempt, repr(error)))

    async def retried(*given: Any) -> None:
        seen.append(("retry", len(given), repr(given[1])))

    def completed() -> None:
        seen.append(("complete",))
        raise RuntimeError("a hook's own failure changes nothing")

    @worker.task(
        retries=1, retry_delay=0.01, timeout=0.2, on_start=started, on_success=succeeded, on_failure=failed, on_retry=retried,
        on_complete=completed,
    )  # fmt: skip
    async def task(how: str) -> Any:
        if how == "late":
            await asyncio.sleep(30)
        if how == "bad":
            return object()
        if how == "fail" or (how == "once" and upnext.get_current_context().attempt == 1):
            raise ValueError(how)
        return how

    async with serving(worker, redis_url, namespace):
        result = await task.wait("once", wait_timeout=30)
        assert seen == [
            ("start", 1, "task"), ("retry", 2, "ValueError('once')"),
            ("start", 2, "task"), ("success", result.job_id, "once"), ("complete",),
        ]  # fmt: skip
        seen.clear()
        with pytest.raises(upnext.TaskExecutionError):
            await task.wait("fail", wait_timeout=30)
        assert seen[-2:] == [("failure", 2, "ValueError('fail')"), ("complete",)]
        seen.clear()
        with pytest.raises(upnext.TaskTimeoutError):
            await task.wait("late", wait_timeout=30)
        late = "JobTimeout('ran longer than its timeout of 0.2 s')"
        assert seen == [
            ("start", 1, "task"),
            ("retry", 2, late),
            ("start", 2, "task"),
            ("failure", 2, late),
            ("complete",),
        ]
        seen.clear()
        with pytest.raises(upnext.TaskExecutionError, match="result"):
            await task.wait("bad", wait_timeout=30)
        assert [name for name, *_ in seen] == ["start", "failure", "complete"], (
            "a value that can't be kept is no success"
        )


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_a_hook_ends_neither_its_job_nor_its_worker(
    redis_url: str, namespace: str, error: type[BaseException]
) -> None:
    worker = upnext.Worker("w", concurrency=1)

    def throws() -> None:
        raise error

    @worker.task(on_start=throws, on_success=throws, on_complete=throws)
    async def task() -> int:
        return upnext.get_current_context().attempt

    async with serving(worker, redis_url, namespace):
        assert (await task.wait(wait_timeout=30)).value == 1
        assert (await task.wait(wait_timeout=30)).value == 1


async def test_hooks_of_threads_and_of_cancelled_jobs(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=1)
    seen: list[Any] = []
    began = asyncio.Event()

    def completed(ctx: upnext.Context, end: Any) -> None:
        seen.append((ctx.function, type(end).__name__))

    @worker.task(on_complete=completed)
    def threaded() -> int:
        return 3

    @worker.task(on_complete=completed, on_failure=lambda: seen.append("failure"))
    async def sleeps() -> None:
        began.set()
        await asyncio.sleep(30)

    async with serving(worker, redis_url, namespace):
        assert (await threaded.wait(wait_timeout=30)).value == 3
        future = await sleeps.submit()
        await began.wait()
        await future.cancel()
        with pytest.raises(upnext.TaskExecutionError):
            await future.result(30)
        assert seen == [("threaded", "int"), ("sleeps", "JobCancelled")]


def test_a_hook_that_needs_more_than_it_gets_is_refused() -> None:
    worker = upnext.Worker("w")

    def needy(ctx: Any, result: Any, more: Any) -> None: ...

    with pytest.raises(ServiceError, match="on_success is called with"):
        worker.task(on_success=needy)(lambda_task)
    with pytest.raises(ServiceError, match=r"on_start is called with \(ctx\)"):
        worker.task(on_start=lambda ctx, value: None)(lambda_task)


async def lambda_task() -> None: ...


async def test_result_ttl(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    ran: list[int] = []

    @worker.task(result_ttl=40)
    async def kept() -> int:
        return 1

    @worker.task(result_ttl=0)
    async def dropped() -> int:
        ran.append(1)
        return 1

    async with serving(worker, redis_url, namespace) as running:
        result = await kept.wait(wait_timeout=30)
        left_ms = await running.command("PTTL", running.keys.result(result.job_id))
        assert 30_000 < int(left_ms) <= 40_000  # type: ignore[call-overload]
        held = await dropped.wait(wait_timeout=30)
        assert (held.value, ran) == (1, [1]), "who waits from the start gets it all the same"
        assert await running.command("EXISTS", running.keys.result(held.job_id)) == 0
