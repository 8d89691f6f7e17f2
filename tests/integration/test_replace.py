"""replace: a job takes the place of the one of its key that no worker has fetched yet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import upnext
from tests.integration.lua_harness import Workbench, task
from tests.support.service import serving
from tests.support.waiting import wait_until_async
from upnext.core.outcome import FailureReason, JobStatus
from upnext.core.submission import Submission
from upnext.engine.calls import client
from upnext.engine.views import jobs
from upnext.errors import DuplicateJobError, UsageError


def put(work: Workbench, nonce: str = "n", payload: bytes = b"{}", **options: Any) -> str:
    job = Submission("ship", payload, idempotency_key="k", replace=True, **options)
    [answer] = work.broker.run(client.replace(work.keys, job, None, nonce))
    if isinstance(answer, client.Held):
        assert answer.nonce == nonce
        return answer.job_id
    assert isinstance(answer, str), answer
    return answer


def test_one_that_was_fetched_and_given_back_unstarted_is_replaced(ready: Workbench) -> None:
    before = put(ready, "n1")
    assert ready.hand_back(ready.take()) == 1
    after = put(ready, "n2")
    assert ready.outcome(before) is not None
    assert ready.lengths("ship") == "n1"
    assert ready.take().job_id == after
    assert ready.hash(ready.keys.where) == {}


@pytest.fixture
def ready(work: Workbench) -> Workbench:
    work.register(task("ship"))
    return work


@pytest.mark.parametrize("first", [{}, {"priority": "high"}, {"delay_s": 60.0}], ids=["normal", "high", "delayed"])
@pytest.mark.parametrize("second", [{}, {"priority": "high"}, {"delay_s": 60.0}], ids=["normal", "high", "delayed"])
def test_one_that_waits_is_replaced(ready: Workbench, first: dict[str, Any], second: dict[str, Any]) -> None:
    before = put(ready, "n1", **first)
    after = put(ready, "n2", b'{"order_id":"A2"}', **second)
    outcome = ready.outcome(before)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == (JobStatus.CANCELLED, FailureReason.CANCELLED)
    assert outcome.cause == "replaced"
    assert outcome.error is not None
    assert outcome.error.message == f"replaced by {after}"
    delayed = ready.broker.command("ZRANGE", ready.keys.delayed, 0, -1)
    lanes = ready.lengths("ship")
    if "delay_s" in second:
        assert (delayed, lanes) == ([after.encode()], "")
    else:
        assert (delayed, lanes) == ([], "h1" if second else "n1")
    assert jobs.id_of_key(ready.broker, ready.keys, "k", "ship") == after
    assert ready.stats() == {"ship:cancelled": 1}


def test_a_waiter_of_the_one_before_is_woken(ready: Workbench) -> None:
    before = put(ready, "n1")
    ready.broker.run(client.watch(ready.keys, before, "c1", 1))
    with ready.hearing(ready.keys.reply("c1")) as messages:
        put(ready, "n2")
    assert len(messages) == 1
    assert ready.hash(ready.keys.waiters) == {}


def test_one_that_a_worker_has_fetched_goes_on_and_the_key_is_the_new_ones(ready: Workbench) -> None:
    before = put(ready, "n1")
    one = ready.take()
    after = put(ready, "n2")
    third = put(ready, "n3")
    assert ready.outcome(after) is not None, "the second was waiting"
    ready.finish(one)
    outcome = ready.outcome(before)
    assert outcome is not None
    assert outcome.status is JobStatus.DONE
    assert jobs.id_of_key(ready.broker, ready.keys, "k") == third, "the end of the first one does not free it"
    assert ready.take().job_id == third


def test_one_that_waits_for_its_next_attempt_goes_on(ready: Workbench) -> None:
    before = put(ready, "n1")
    ready.retry(ready.put_back(ready.take(), delay_ms=60_000))
    after = put(ready, "n2", delay_s=60.0)
    waiting = {one.decode() for one in ready.broker.command("ZRANGE", ready.keys.delayed, 0, -1)}
    assert waiting == {before, after}


def test_one_that_moved_is_found_where_it_is(ready: Workbench) -> None:
    before = put(ready, "n1", delay_s=0.0)
    assert ready.promote()[0] == 1
    put(ready, "n2")
    assert ready.outcome(before) is not None
    assert ready.lengths("ship") == "n1"
    assert ready.hash(ready.keys.where) == {}


def test_a_repeat_after_a_lost_reply_replaces_nothing(ready: Workbench) -> None:
    first = put(ready, "n1")
    before = ready.everything()
    assert put(ready, "n1") == first
    assert ready.everything() == before
    ready.finish(ready.take())
    assert put(ready, "n1") == first, "also when its job has ended meanwhile"


def test_an_ended_one_and_none_at_all(ready: Workbench) -> None:
    put(ready, "n1")
    ready.finish(ready.take())
    second = put(ready, "n2")
    assert ready.stats() == {"ship:done": 1}
    ready.finish(ready.take())
    assert ready.leaks() == []
    assert jobs.id_of_key(ready.broker, ready.keys, "k") == second


def test_a_queue_ttl_and_a_limit(work: Workbench) -> None:
    work.register(task("ship", max_concurrency=1))
    put(work, "n1", delay_s=60.0)
    with work.bell() as words:
        put(work, "n2", queue_ttl_s=60.0)
    assert words == ["tship"]
    [meta] = work.metas("ship", "n")
    assert meta.expires_ms is not None
    assert 0 < meta.expires_ms - work.now_ms() <= 60_001, "it is rounded up"


def test_a_lane_that_takes_nothing_leaves_the_one_before(ready: Workbench) -> None:
    before = put(ready, "n1", delay_s=60.0)
    ready.broker.command(
        "XADD", ready.keys.stream("ship", "n"), "18446744073709551615-18446744073709551615", "p1", "{}"
    )
    job = Submission("ship", b"{}", idempotency_key="k", replace=True)
    [answer] = ready.broker.run(client.replace(ready.keys, job, None, "n2"))
    assert isinstance(answer, client.Refused)
    assert jobs.id_of_key(ready.broker, ready.keys, "k") == before
    assert ready.outcome(before) is None


async def test_of_many_submits_the_last_runs(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    seen: list[int] = []

    @worker.task
    async def save(version: int) -> int:
        seen.append(version)
        return version

    async with serving(worker, redis_url, namespace):
        later = save.options(replace="doc-7", delay=0.3)
        first = await later.submit(1)
        await asyncio.to_thread(later.submit_sync, 2)
        assert (await later.wait(3)).value == 3
        assert await first.status() is upnext.JobStatus.CANCELLED
        with pytest.raises(upnext.TaskExecutionError, match="replaced by save:d"):
            await first
        assert seen == [3]
        held = await save.options(replace="doc-7", delay=60).submit(4)
        with pytest.raises(DuplicateJobError) as raised:
            await save.submit_idempotent("doc-7", 5)
        assert raised.value.job_id == held.job_id, "it is the idempotency key"
        with pytest.raises(UsageError, match="exclude one another"):
            await later.submit_idempotent("other", 6)
        with pytest.raises(UsageError, match="one by one"):
            await later.submit_many([(7,), (8,)])
        with pytest.raises(UsageError, match="1 to 512 characters"):
            save.options(replace="")


async def test_one_that_runs_goes_on_beside_the_new_one(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    begun: list[int] = []
    go = asyncio.Event()

    @worker.task
    async def save(version: int) -> int:
        begun.append(version)
        await go.wait()
        return version

    async with serving(worker, redis_url, namespace):
        one = await save.options(replace="doc").submit(1)
        await wait_until_async(lambda: begun == [1], 20)
        two = await save.options(replace="doc").submit(2)
        go.set()
        assert [await one, await two] == [1, 2]
