"""gather, map_tasks and first_completed, over a stand-in for the broker."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

import upnext
from tests.unit.sdk.fake_broker import StandIn
from upnext.core.outcome import JobStatus, Outcome
from upnext.core.submission import Submission

worker = upnext.Worker("shop")


@worker.task
async def double(number: int) -> int:
    return number * 2


class Echo:
    """Answers each wait with the double of the number, after a turn of the loop; knows how many were open at once."""

    def __init__(self, standin: StandIn, fail_at: int | None = None) -> None:
        self.open = self.most = self.submitted = 0
        self._fail_at = fail_at
        standin.asynchronous.submit_and_wait = self.submit_and_wait

    async def submit_and_wait(self, s: Submission, /, timeout_s: float | None) -> tuple[str, Outcome]:
        number = orjson.loads(s.payload)["number"]
        self.submitted += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(0)
        finally:
            self.open -= 1
        if number == self._fail_at:
            return f"double:n{number}-0", Outcome(JobStatus.FAILED)
        return f"double:n{number}-0", Outcome(JobStatus.DONE, value=orjson.dumps(number * 2))


async def test_map_tasks_keeps_the_order_and_the_limit(standin: StandIn) -> None:
    echo = Echo(standin)
    assert await upnext.map_tasks(double, [{"number": n} for n in range(25)], concurrency=4) == [
        2 * n for n in range(25)
    ]
    assert echo.most == 4
    assert await upnext.map_tasks(double, ((n,) for n in range(3))) == [0, 2, 4]
    assert await upnext.map_tasks(double, []) == []


async def test_map_tasks_stops_at_the_first_failure(standin: StandIn) -> None:
    echo = Echo(standin, fail_at=2)
    with pytest.raises(upnext.TaskExecutionError, match="double:n2-0"):
        await upnext.map_tasks(double, [(n,) for n in range(100)], concurrency=2)
    assert echo.submitted <= 4
    assert echo.open == 0
    with pytest.raises(upnext.UsageError, match="map_tasks: concurrency must be a whole number of at least 1, not 0"):
        await upnext.map_tasks(double, [], concurrency=0)


async def test_gather_takes_futures_and_coroutines(standin: StandIn) -> None:
    Echo(standin)
    standin.outcomes["double:n1-0"] = Outcome(JobStatus.DONE, value=b"14")
    future = await double.submit(7)
    result, value = await upnext.gather(double.wait(2), future)
    assert isinstance(result, upnext.TaskResult)
    assert (result.value, value) == (4, 14)
    assert await upnext.gather() == []


async def test_gather_leaves_nothing_waiting_when_one_fails() -> None:
    never: list[asyncio.Task[Any]] = []

    async def wait_for_ever() -> None:
        task = asyncio.current_task()
        assert task is not None
        never.append(task)
        await asyncio.Event().wait()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await upnext.gather(wait_for_ever(), fail())
    assert never[0].cancelled()
    first, second = await upnext.gather(fail(), asyncio.sleep(0, "yes"), return_exceptions=True)
    assert isinstance(first, ValueError)
    assert second == "yes"


async def test_first_completed_drops_the_others() -> None:
    slow = asyncio.ensure_future(asyncio.Event().wait())
    assert await upnext.first_completed(slow, asyncio.sleep(0, "fast")) == "fast"
    assert slow.cancelled()


async def test_first_completed_times_out() -> None:
    slow = asyncio.ensure_future(asyncio.Event().wait())
    with pytest.raises(TimeoutError, match="none of 1 ended within 0 s"):
        await upnext.first_completed(slow, timeout=0)
    assert slow.cancelled()
    with pytest.raises(upnext.UsageError, match="at least one"):
        await upnext.first_completed()


async def test_cancelling_a_gather_cancels_what_it_waits_for() -> None:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    outer = asyncio.ensure_future(upnext.gather(inner))
    await asyncio.sleep(0)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()
