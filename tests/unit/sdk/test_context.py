"""The Context over an attempt, and the writer of progress and checkpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import upnext
from tests.support.waiting import wait_until_async
from tests.unit.sdk.fake_broker import StandIn, StandInAttempt
from upnext.context import Context
from upnext.engine import notes
from upnext.engine.attempt import CURRENT
from upnext.errors import BrokerUnavailableError, EncodingError, PayloadTooLargeError, UsageError

worker = upnext.Worker("shop")


@worker.task(name="shop.pack", timeout=20, result_ttl=60)
async def pack() -> None: ...


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    assert notes._unwritten == set()
    assert notes._writers == {}


def attempt_on(standin: StandIn, loop: asyncio.AbstractEventLoop | None) -> StandInAttempt:
    return StandInAttempt(standin, pack.spec, loop)


async def written(standin: StandIn, count: int) -> None:
    await wait_until_async(
        lambda: len(standin.noted) >= count and not notes._writers,
        timeout_s=5,
        what=f"{count} writes",
    )


def test_outside_a_task_there_is_none() -> None:
    with pytest.raises(UsageError, match="get_current_context: this code is not running in a task"):
        upnext.get_current_context()


async def test_it_tells_what_the_attempt_knows(standin: StandIn) -> None:
    attempt = attempt_on(standin, asyncio.get_running_loop())
    token = CURRENT.set(attempt)  # pyright: ignore[reportArgumentType]
    try:
        for ctx in (upnext.get_current_context(), await asyncio.to_thread(upnext.get_current_context)):
            assert (ctx.job_id, ctx.parent_id, ctx.root_id) == ("shop.pack:n77-0", None, "shop.pack:n77-0")
            assert (ctx.attempt, ctx.max_attempts, ctx.crashes) == (2, 4, 1)
            assert ctx.started_at == datetime.fromtimestamp(1_700_000_000, UTC)
            assert (ctx.timeout, ctx.function, ctx.function_name) == (20.0, "shop.pack", "pack")
            assert ctx.is_cancelled is False
            assert repr(ctx) == "<Context shop.pack:n77-0 attempt 2 of 4>"
    finally:
        CURRENT.reset(token)
    attempt.parent_id, attempt.root_id, attempt.cancelled = "a:n1-0", "r:n1-0", True
    assert (ctx.parent_id, ctx.root_id, ctx.is_cancelled) == ("a:n1-0", "r:n1-0", True)


@pytest.mark.usefixtures("clean")
async def test_progress_and_checkpoint_are_written_together_and_only_the_newest(standin: StandIn) -> None:
    ctx = Context(attempt_on(standin, asyncio.get_running_loop()))
    state = {"row": 1}
    for step in range(100):
        ctx.set_progress(step / 100, "packing")
    ctx.checkpoint(state)
    state["row"] = 2  # the task goes on; what was kept stays
    await written(standin, 1)
    expected = {"progress": 0.99, "message": "packing", "checkpoint": {"row": 1}}
    assert standin.noted == [("shop.pack:n77-0", expected)]
    ctx.set_progress(1)
    await written(standin, 2)
    assert standin.noted[1][1] == {"progress": 1, "message": None, "checkpoint": {"row": 1}}
    assert ctx.last_checkpoint == {"row": 1}


@pytest.mark.usefixtures("clean")
async def test_what_cannot_be_kept_is_refused_where_it_is_said(standin: StandIn) -> None:
    ctx = Context(attempt_on(standin, asyncio.get_running_loop()))
    with pytest.raises(EncodingError, match="set_progress progress: the integer is beyond 64 bits"):
        ctx.set_progress(10**400)
    with pytest.raises(EncodingError, match="set_progress message: object has no JSON form"):
        ctx.set_progress(1, object())  # type: ignore[arg-type]
    with pytest.raises(PayloadTooLargeError, match="checkpoint: 2,000,002 bytes as JSON, over the cap"):
        ctx.checkpoint("x" * 2_000_000)
    assert standin.noted == []


@pytest.mark.usefixtures("clean")
async def test_what_comes_during_a_write_is_written_after_it(standin: StandIn) -> None:
    attempt = attempt_on(standin, asyncio.get_running_loop())
    ctx = Context(attempt)
    gate, entered = asyncio.Event(), asyncio.Event()
    plain = attempt.write_notes

    async def slow(state: dict[str, Any], /) -> None:
        entered.set()
        await gate.wait()
        await plain(state)

    attempt.write_notes = slow
    ctx.set_progress(1)
    await entered.wait()
    ctx.set_progress(2)
    ctx.set_progress(3)
    gate.set()
    await written(standin, 2)
    assert [fields["progress"] for _, fields in standin.noted] == [1, 3]


@pytest.mark.usefixtures("clean")
async def test_a_thread_task_writes_through_the_loop(standin: StandIn) -> None:
    ctx = Context(attempt_on(standin, asyncio.get_running_loop()))
    await asyncio.to_thread(ctx.checkpoint, [1, 2])
    await written(standin, 1)
    assert standin.noted[0][1] == {"checkpoint": [1, 2]}


@pytest.mark.usefixtures("clean")
async def test_a_broker_that_is_away_costs_the_progress_and_not_the_job(
    standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = attempt_on(standin, asyncio.get_running_loop())
    plain = attempt.write_notes

    async def away(state: dict[str, Any], /) -> None:
        raise BrokerUnavailableError("connection refused")

    attempt.write_notes = away
    ctx = Context(attempt)
    with caplog.at_level("WARNING", "upnext.progress"):
        ctx.set_progress(1)
        await wait_until_async(lambda: bool(caplog.records), timeout_s=5, what="the warning")
    assert caplog.messages == ["progress of shop.pack:n77-0 was not written: connection refused"]
    attempt.write_notes = plain
    ctx.set_progress(2)
    await written(standin, 1)


async def test_the_last_checkpoint_of_an_earlier_attempt(standin: StandIn) -> None:
    attempt = attempt_on(standin, asyncio.get_running_loop())
    assert Context(attempt).last_checkpoint is None
    attempt.state = {"progress": 0.5, "checkpoint": {"row": 7}}
    assert Context(attempt).last_checkpoint == {"row": 7}


async def test_wrong_values_are_refused_where_they_are_given(standin: StandIn) -> None:
    ctx = Context(attempt_on(standin, asyncio.get_running_loop()))
    for wrong in (float("nan"), float("inf"), True, "half"):
        with pytest.raises(UsageError, match="set_progress: expects a finite number"):
            ctx.set_progress(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EncodingError, match="checkpoint"):
        ctx.checkpoint({"row": object()})
    with pytest.raises(UsageError, match="send_log: there is no level 'loud'"):
        ctx.send_log("loud", "hello")
    assert standin.noted == []


async def test_log_lines_carry_the_job(standin: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    ctx = Context(attempt_on(standin, asyncio.get_running_loop()))
    with caplog.at_level(logging.INFO, "upnext.task"):
        ctx.log.info("packed %s", "o-1", extra={"mine": 1})
        ctx.send_log("warning", "100% heavy", name="tea", module="clash")
    first, second = caplog.records
    assert (first.name, first.getMessage()) == ("upnext.task.shop.pack", "packed o-1")
    assert vars(first).items() >= {"job_id": "shop.pack:n77-0", "task": "shop.pack", "attempt": 2, "mine": 1}.items()
    assert (second.levelname, second.getMessage()) == ("WARNING", "100% heavy")
    assert vars(second)["fields"] == {"name": "tea", "module": "clash"}
