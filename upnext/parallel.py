"""Several jobs at once: wait for all, for the first, for a mapped list; submit many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal, TypeVar, overload

from upnext.declare import whole
from upnext.errors import ServiceError, UsageError
from upnext.future import Future
from upnext.task import Input, Submitter, arguments_of

T = TypeVar("T")


@overload
async def gather(*aws: Awaitable[T], return_exceptions: Literal[False] = False) -> list[T]: ...
@overload
async def gather(*aws: Awaitable[T], return_exceptions: bool) -> list[T | BaseException]: ...
async def gather(*aws: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
    """Waits for all: `a, b = await gather(future, task.wait(...))` -> their values in order (a Future's is its value).

    The first to fail ends the waiting for the others (their jobs go on) and is raised; with `return_exceptions` errors stand in the
    list instead.
    """
    return await _all([asyncio.ensure_future(one) for one in aws], return_exceptions)


async def map_tasks(task: Submitter[..., T], inputs: Iterable[Input], *, concurrency: int = 10) -> list[T]:
    """One job for each of `inputs` (a dict of named arguments, or a tuple of positional ones) -> their values in order.

    At most `concurrency` jobs are in the queue at a time. The first to fail ends it: no further job is submitted, and its error is raised.
    """
    try:
        whole("map_tasks", "concurrency", concurrency)
    except ServiceError as error:  # given in a call, not in a declaration
        raise UsageError(str(error)) from None
    todo = deque(enumerate(inputs))
    values: dict[int, T] = {}

    async def work() -> None:
        while todo:
            place, one = todo.popleft()
            args, kwargs = arguments_of(one)
            try:
                values[place] = (await task.wait(*args, **kwargs)).value
            except BaseException:
                todo.clear()
                raise

    await _all([asyncio.ensure_future(work()) for _ in range(concurrency)], return_exceptions=False)
    return [values[place] for place in range(len(values))]


async def first_completed(*aws: Awaitable[T], timeout: float | None = None, cancel_losers: bool = False) -> T:
    """Waits for whichever ends first -> its value, or its error; stops waiting for the others, whose jobs go on.

    cancel_losers: the jobs of the others are cancelled, as `Future.cancel` does; of what is no Future, no job is known here.
    Raises the built-in TimeoutError when none has ended after `timeout` seconds.
    """
    if not aws:
        raise UsageError("first_completed: expects at least one thing to wait for")
    tasks = [asyncio.ensure_future(one) for one in aws]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not any(one.done() for one in tasks):
            raise TimeoutError(f"none of {len(tasks)} ended within {timeout} s")
        winner = next(one for one in tasks if one.done())
        if cancel_losers:
            losers = [one for one, task in zip(aws, tasks, strict=True) if task is not winner]
            await asyncio.gather(*(one.cancel() for one in losers if isinstance(one, Future)))
        return winner.result()
    finally:
        await _drop(tasks)
        del tasks  # one that failed holds its error, and the error this frame


async def submit_many(task: Submitter[..., T], inputs: Sequence[Input]) -> list[Future[T]]:
    """`task.submit_many(inputs)`: queues one job for each input -> their Futures in order. A thousand take one round trip."""
    return await task.submit_many(inputs)


def submit_many_sync(task: Submitter[..., T], inputs: Sequence[Input]) -> list[Future[T]]:
    """`submit_many` for plain code: blocks the thread."""
    return task.submit_many_sync(inputs)


async def _all(tasks: Sequence[asyncio.Future[Any]], return_exceptions: bool) -> list[Any]:
    try:
        return await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    finally:
        await _drop(tasks)
        del tasks  # one that failed holds its error, and the error this frame


async def _drop(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Nothing is left waiting behind the caller's back."""
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
