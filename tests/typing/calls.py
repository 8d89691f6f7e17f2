# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedCoroutine=false
"""What a type checker must accept, and refuse, of code that uses UpNext. Read by test_typing.py; never run.

A line that must be refused has an ignore comment for just that rule: if the checker came to accept it, the comment would be the error.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type

import upnext

worker = upnext.Worker("shop", concurrency=10, sync_executor="process")


@dataclass
class Receipt:
    order_id: str


@worker.task
async def bare(order_id: str, *, express: bool = False) -> Receipt:
    return Receipt(order_id)


@worker.task(retries=3, timeout=timedelta(seconds=30), retry_on=(OSError,), rate_limit="10/minute", priority="high")
async def called(order_id: str, amount: Decimal = Decimal(1)) -> int:
    return 1


@worker.task
def plain(order_id: str, *items: str) -> list[str]:
    return list(items)


@worker.task(name="render", cache_key="r:{order_id}", cache_ttl=60)
def plain_called(order_id: str) -> str:
    return order_id


@worker.cron("0 9 * * *", timezone="Europe/Berlin", missed_run_policy="skip")
async def daily() -> int:
    return 1


placed = worker.event("order.placed")


@placed.on
async def confirm(order_id: str, **rest: Any) -> None: ...


@placed.on(retries=3)
def reserve(order_id: str, skus: list[str]) -> int:
    return 1


async def right() -> None:  # noqa: PLR0915 - a list
    # submit: the function's own parameters, and a Future of what it returns
    assert_type(await bare.submit("o-1", express=True), upnext.Future[Receipt])
    assert_type(await bare.submit(order_id="o-1"), upnext.Future[Receipt])
    assert_type(await called.submit("o-1", Decimal(2)), upnext.Future[int])
    assert_type(await plain.submit("o-1", "tea", "milk"), upnext.Future[list[str]])
    assert_type(plain_called.submit_sync("o-1"), upnext.Future[str])
    assert_type(await called.submit_idempotent("key", "o-1", amount=Decimal(2)), upnext.Future[int])
    assert_type(called.submit_idempotent_sync("key", "o-1"), upnext.Future[int])
    assert_type(await called.submit_many([{"order_id": "o-1"}, ("o-2",)]), list[upnext.Future[int]])
    assert_type(await upnext.submit_many(bare, [{"order_id": "o-1"}]), list[upnext.Future[Receipt]])
    assert_type(upnext.submit_many_sync(plain, []), list[upnext.Future[list[str]]])

    # wait: a TaskResult of it
    assert_type(await bare.wait("o-1"), upnext.TaskResult[Receipt])
    assert_type((await bare.wait("o-1")).value, Receipt)
    assert_type(await bare.wait("o-1", wait_timeout=5), upnext.TaskResult[Receipt])
    assert_type(plain.wait_sync("o-1"), upnext.TaskResult[list[str]])
    assert_type(plain.wait_sync("o-1", wait_timeout=None), upnext.TaskResult[list[str]])
    assert_type(await called.wait_idempotent("key", "o-1"), upnext.TaskResult[int])
    assert_type(called.wait_idempotent_sync("key", "o-1", wait_timeout=5), upnext.TaskResult[int])

    # options keep both
    later = called.options(delay=5, priority="high", queue_ttl=timedelta(minutes=1))
    assert_type(await later.submit("o-1"), upnext.Future[int])
    assert_type(await called.options(at=datetime.now(UTC), wait_timeout=5).wait("o-1"), upnext.TaskResult[int])

    # futures
    future = await bare.submit("o-1")
    assert_type(await future, Receipt)
    assert_type(await future.value(timeout=5), Receipt)
    assert_type((await future.result()).value, Receipt)
    assert_type(future.value_sync(), Receipt)
    assert_type(future.result_sync(5).status, upnext.JobStatus)
    assert_type(await future.cancel(), bool)
    assert_type(bare.future("bare:n1-0"), upnext.Future[Receipt])

    # calling a handle runs the function
    assert_type(await bare("o-1"), Receipt)
    assert_type(bare("o-1"), Coroutine[Any, Any, Receipt])
    assert_type(plain("o-1", "tea"), list[str])
    assert_type(await daily(), int)
    assert_type(await daily.submit(), upnext.Future[int])

    # events: any fields by the event, a handler's own by the handler
    assert_type(await placed.send(order_id="o-1", anything=1), int)
    assert_type(await confirm.send("o-1", anything=1), int)
    assert_type(reserve.send_sync(order_id="o-1", skus=["tea"]), int)
    assert_type(await reserve.send_idempotent("key", "o-1", ["tea"]), int)
    assert_type(await confirm("o-1"), None)
    assert_type(reserve("o-1", ["tea"]), int)

    # several at once
    assert_type(await upnext.gather(future, bare.submit_sync("o-2")), list[Receipt])
    assert_type(await upnext.gather(future, return_exceptions=True), list[Receipt | BaseException])
    assert_type(await upnext.map_tasks(called, [{"order_id": "o-1"}], concurrency=5), list[int])
    assert_type(await upnext.map_tasks(called.options(delay=1), [("o-1",)]), list[int])
    assert_type(await upnext.first_completed(future, future, timeout=5), Receipt)

    # the rest of the public names
    ctx = upnext.get_current_context()
    assert_type(ctx, upnext.Context)
    ctx.set_progress(0.5, "half")
    ctx.checkpoint({"row": 1})
    try:
        await future
    except upnext.TaskTimeoutError as error:
        assert_type(error.task_result.failure_reason, upnext.FailureReason | None)
    except upnext.DuplicateJobError as error:
        assert_type(error.job_id, str)
    if future.job_id:
        raise upnext.Retry(delay=5)


async def wrong() -> None:
    # arguments that the function doesn't take, or not so
    await bare.submit()  # pyright: ignore[reportCallIssue]
    await bare.submit(1)  # pyright: ignore[reportArgumentType]
    await bare.submit("o-1", True)  # pyright: ignore[reportCallIssue]
    await bare.submit("o-1", expres=True)  # pyright: ignore[reportCallIssue]
    await called.submit("o-1", amount="2")  # pyright: ignore[reportArgumentType]
    await called.options(delay=5).submit(order="o-1")  # pyright: ignore[reportCallIssue]
    plain.submit_sync("o-1", 5)  # pyright: ignore[reportArgumentType]
    await called.submit_idempotent("key")  # pyright: ignore[reportCallIssue]
    await called.submit_idempotent(5, "o-1")  # pyright: ignore[reportArgumentType]
    await bare.wait(order="o-1")  # pyright: ignore[reportCallIssue]
    bare.wait_sync()  # pyright: ignore[reportCallIssue]
    await daily.submit("o-1")  # pyright: ignore[reportCallIssue]
    bare()  # pyright: ignore[reportCallIssue]
    plain(1)  # pyright: ignore[reportArgumentType]

    # results taken for something else
    total: int = await bare.submit("o-1")  # pyright: ignore[reportAssignmentType]
    text: str = (await called.wait("o-1")).value  # pyright: ignore[reportAssignmentType]
    print(total, text)

    # events
    await reserve.send("o-1")  # pyright: ignore[reportCallIssue]
    await reserve.send("o-1", "tea")  # pyright: ignore[reportArgumentType]
    await placed.send("o-1")  # pyright: ignore[reportCallIssue]

    # options that don't exist, or not so
    worker.task(retires=3)  # pyright: ignore[reportCallIssue]
    worker.task(retries="3")  # pyright: ignore[reportArgumentType]
    worker.task(priority="urgent")  # pyright: ignore[reportArgumentType]
    worker.cron("* * * * *", cache_key="x")  # pyright: ignore[reportCallIssue]
    worker.cron()  # pyright: ignore[reportCallIssue]
    placed.on(cache_ttl=5)  # pyright: ignore[reportCallIssue]
    called.options(delay="5")  # pyright: ignore[reportArgumentType]
    called.options(priority="low")  # pyright: ignore[reportArgumentType]
    upnext.Worker(concurency=5)  # pyright: ignore[reportArgumentType]
    upnext.Worker("shop", sync_executor="fiber")  # pyright: ignore[reportArgumentType]
    await upnext.map_tasks(called, [5])  # pyright: ignore[reportArgumentType]
    upnext.Wroker()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
