"""What one job has in place of its task's options: timeout, retries, result life; and labels."""

from __future__ import annotations

import asyncio

import pytest

import upnext
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.keys import Keys
from upnext.core.outcome import FailureReason
from upnext.engine.client.queue_client import QueueClient


async def test_a_job_has_its_own_timeout_and_retries(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    attempts: dict[str, int] = {}

    @worker.task(timeout=30)
    async def sleeps(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @worker.task(timeout=0.05)
    async def naps(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "napped"

    @worker.task(retries=0, retry_delay=0.01)
    async def fails(name: str, times: int) -> int:
        attempts[name] = attempts.get(name, 0) + 1
        if attempts[name] <= times:
            raise ValueError(name)
        return attempts[name]

    async with serving(worker, redis_url, namespace):
        with pytest.raises(upnext.TaskTimeoutError) as caught:
            await sleeps.options(timeout=0.05).wait(60, wait_timeout=30)
        assert caught.value.task_result.failure_reason is FailureReason.TIMEOUT
        assert caught.value.task_result.error == "TimeoutError: ran longer than its timeout of 0.05 s"
        assert (await naps.options(timeout=None).wait(0.2, wait_timeout=30)).value == "napped"
        assert (await fails.options(retries=2).wait("a", 2, wait_timeout=30)).value == 3
        assert (await fails.options(retries=None).wait("b", 5, wait_timeout=30)).value == 6
        with pytest.raises(upnext.TaskExecutionError):
            await fails.wait("c", 1, wait_timeout=30)
        dead = (await upnext.jobs(state="failed", task="fails"))[0]
        assert (dead.attempt, dead.max_attempts) == (1, 1)


async def test_a_job_of_a_task_that_runs_in_a_thread_has_them_too(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)

    @worker.task(retries=0, retry_delay=0.01)
    def fails() -> int:
        attempt = upnext.get_current_context().attempt
        if attempt < 3:
            raise ValueError(attempt)
        return attempt

    async with serving(worker, redis_url, namespace):
        assert (await fails.options(retries=2).wait(wait_timeout=30)).value == 3


async def test_a_result_lives_as_long_as_the_job_says(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task(result_ttl=600)
    async def value() -> int:
        return 1

    keys = Keys(namespace)
    async with serving(worker, redis_url, namespace):
        client = QueueClient(redis_url, namespace)
        try:
            kept = await value.submit()
            brief = await value.options(result_ttl=5, delay=0.01).submit()
            none = await value.options(result_ttl=0).submit()
            await kept.value(timeout=30)
            await brief.value(timeout=30)
            assert 500_000 < await client.link.command("PTTL", f"{keys.result_prefix}{kept.job_id}") <= 600_000
            assert 0 < await client.link.command("PTTL", f"{keys.result_prefix}{brief.job_id}") <= 5_000

            async def gone() -> bool:
                return not any(one.job_id == none.job_id for one in await upnext.jobs(state="queued")) and not (
                    await client.link.command("EXISTS", f"{keys.result_prefix}{none.job_id}")
                )

            await wait_until_async(gone, 30, "the end of a job without a result")
        finally:
            await client.aclose()


async def test_labels_stay_with_a_job_to_its_end(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    worker = upnext.Worker("w")
    go = asyncio.Event()

    @worker.task(retries=1, retry_delay=0.01)
    async def work(fail: bool) -> None:
        await go.wait()
        if fail:
            raise ValueError("no")

    labelled = work.options(labels={"customer": "A1", "batch": "7"})
    delayed = await labelled.options(delay=3600).submit(False)
    assert (await upnext.job(delayed.job_id)).labels == {"customer": "A1", "batch": "7"}
    async with serving(worker, redis_url, namespace):
        good, bad, plain = await labelled.submit(False), await labelled.submit(True), await work.submit(False)
        assert (await upnext.job(good.job_id)).labels == {"customer": "A1", "batch": "7"}
        go.set()
        await good.value(timeout=30)
        await plain.value(timeout=30)
        with pytest.raises(upnext.TaskExecutionError):
            await bad.value(timeout=30)
        for job_id in (good.job_id, bad.job_id):
            assert (await upnext.job(job_id)).labels == {"customer": "A1", "batch": "7"}
        assert (await upnext.job(plain.job_id)).labels == {}
    cancelled = await labelled.submit(False)
    await cancelled.cancel()
    assert (await upnext.job(cancelled.job_id)).labels == {"customer": "A1", "batch": "7"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "timeout must be more than 0 seconds, not 0"),
        ({"retries": -1}, "retries must be"),
        ({"result_ttl": -1}, "result_ttl must be 0 or more seconds"),
        ({"labels": {"": "x"}}, "a label's name is text of 1 to 64 characters, not ''"),
        ({"labels": {"a": 1}}, "label a has text of at most 256 characters, not 1"),
        ({"labels": {str(number): "" for number in range(17)}}, "at most 16 labels, not 17"),
    ],
)
def test_what_can_not_be_meant_is_refused(options: dict[str, object], words: str) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def work() -> None: ...

    with pytest.raises(upnext.UsageError, match=words):
        work.options(**options)  # type: ignore[arg-type]
