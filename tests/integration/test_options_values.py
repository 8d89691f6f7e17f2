"""Typed arguments and results through a broker: what goes in by annotation comes out by annotation."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pydantic
import pytest

import upnext
from tests.support.service import forget, serving, write_service
from upnext.core.outcome import FailureReason, JobStatus
from upnext.errors import EncodingError, InvalidArgumentsError, PayloadTooLargeError
from upnext.service import load


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Item:
    sku: str
    price: Decimal
    tags: frozenset[str]


class Row(TypedDict):
    when: datetime
    raw: bytes


class Point(NamedTuple):
    x: int
    y: float


class Model(pydantic.BaseModel):
    id: uuid.UUID
    items: list[Item]


ITEM = Item("tea", Decimal("4.50"), frozenset({"a", "b"}))
VALUES: list[tuple[Any, Any]] = [
    (datetime, datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)),
    (date, date(2026, 3, 4)),
    (time, time(5, 6, 7)),
    (timedelta, timedelta(days=1, seconds=2, microseconds=3)),
    (uuid.UUID, uuid.UUID(int=7)),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (bytes, b"\x00\xff"),
    (Item, ITEM),
    (Row, {"when": datetime(2026, 1, 1, tzinfo=UTC), "raw": b"x"}),
    (Point, Point(1, 2.5)),
    (Model, Model(id=uuid.UUID(int=1), items=[ITEM])),
    (dict[str, list[Item]], {"a": [ITEM]}),
    (tuple[int, date], (1, date(2026, 1, 1))),
    (set[int], {1, 2}),
    (Colour | None, None),
]


async def test_they_round_trip_in_threads_and_on_the_loop(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=4)
    tasks: list[Any] = []
    seen: list[Any] = []
    for number, (kind, _) in enumerate(VALUES):

        def plain(value: Any) -> Any:
            seen.append(value)
            return value

        async def on_loop(value: Any) -> Any:
            seen.append(value)
            return value

        for function in (plain, on_loop):
            function.__annotations__ = {"value": kind, "return": kind}
            tasks.append(worker.task(name=f"{function.__name__}-{number}")(function))

    async with serving(worker, redis_url, namespace):
        for number, (_, value) in enumerate(VALUES):
            for task in tasks[2 * number : 2 * number + 2]:
                seen.clear()
                future = await task.submit(value)
                got = await future.value(60)
                assert (got, type(got)) == (value, type(value))
                assert (seen[0], type(seen[0])) == (value, type(value))


async def test_calls_bind_as_calls_do(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def call(a: int, /, b: int = 2, *rest: int, c: date = date(2026, 1, 1), **more: int) -> list[Any]:
        return [a, b, rest, c, more]

    async with serving(worker, redis_url, namespace):
        assert (await call.wait(1, wait_timeout=20)).value == [1, 2, [], "2026-01-01", {}]
        got = (await call.wait(1, 3, 4, 5, c=date(2026, 2, 2), d=6, wait_timeout=20)).value
        assert got == [1, 3, [4, 5], "2026-02-02", {"d": 6}]
        with pytest.raises(InvalidArgumentsError, match="lacks argument 'a'"):
            await call.submit()  # type: ignore[call-arg]


async def test_what_cannot_be_sent_is_refused_at_submit(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def take(value: Any) -> None: ...

    async with serving(worker, redis_url, namespace) as running:
        with pytest.raises(EncodingError, match=r"argument .*value.*object"):
            await take.submit({"deep": [object()]})
        with pytest.raises(PayloadTooLargeError, match="over the cap"):
            await take.submit("x" * 1_100_000)
        assert await running.command("XLEN", running.keys.stream("take", "n")) == 0


async def test_a_result_that_cannot_be_encoded_fails_that_job_alone(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=10)

    @worker.task(retries=3)
    async def work(good: bool) -> Any:
        return {"items": [{"when": datetime(2026, 1, 1, tzinfo=UTC)}, "fine" if good else {1, object()}]}

    async with serving(worker, redis_url, namespace):
        futures = await work.submit_many([(number != 7,) for number in range(20)])
        for number, future in enumerate(futures):
            if number != 7:
                assert (await future.value(60))["items"][1] == "fine"
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await futures[7].result(60)
        end = caught.value.task_result
        assert (end.status, end.failure_reason, end.attempts) == (JobStatus.FAILED, FailureReason.ERROR, 1)
        assert end.error is not None
        assert end.error.startswith("upnext.errors.EncodingError: result.items[1]"), end.error


async def test_a_result_over_the_cap_fails_that_job_alone(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)

    @worker.task
    async def work(size: int) -> str:
        return "x" * size

    async with serving(worker, redis_url, namespace):
        with pytest.raises(upnext.TaskExecutionError, match="the result is 16,777,218 bytes as JSON, over the cap"):
            await work.wait(16 * 1024 * 1024, wait_timeout=60)
        assert len((await work.wait(1_000_000, wait_timeout=60)).value) == 1_000_000


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_whatever_an_error_says_the_job_ends(
    redis_url: str, namespace: str, tmp_path: Path, executor: str
) -> None:
    service = write_service(
        tmp_path,
        f"""
import upnext
worker = upnext.Worker("w", sync_executor="{executor}")

class NoText(Exception):
    def __str__(self):
        raise SystemExit(9)

@worker.task
def surrogate():
    raise ValueError("no file \\ud800")

@worker.task
def no_text():
    raise NoText

@worker.task
def endless():
    raise ValueError("x" * 1_000_000)

@worker.task
def bare():
    raise ValueError
""",
    )
    try:
        async with serving(service, redis_url, namespace):
            ends = {}
            for task in ("surrogate", "no_text", "endless", "bare"):
                future = await load(str(service)).workers[0].tasks[task].submit()
                with pytest.raises(upnext.TaskExecutionError) as caught:
                    await future.result(30)
                ends[task] = caught.value.task_result.error or ""
    finally:
        forget(service)
    assert ends["surrogate"] == "ValueError: no file \\ud800"
    assert ends["no_text"].endswith("NoText: (its text can't be made: SystemExit)")
    assert len(ends["endless"]) < 5000
    assert ends["bare"] == "ValueError"
