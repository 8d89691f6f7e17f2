"""A lifespan: entered before the first job, its value in every job, left after the last one, by one task; hooks of a whole Worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import upnext
from tests.support.service import forget, serving, write_service
from tests.support.waiting import wait_until_async
from upnext.engine.worker import lifespan
from upnext.errors import LifespanError


async def test_the_state_is_in_every_job_and_left_after_the_last(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    seen: list[Any] = []
    began = asyncio.Event()

    @worker.lifespan
    @asynccontextmanager
    async def life(owner: upnext.Worker) -> AsyncGenerator[dict[str, str]]:
        seen.append(("entered", owner.name, asyncio.current_task()))
        yield {"pool": "open"}
        seen.append(("left", owner.name, asyncio.current_task()))

    @worker.task
    async def in_loop() -> str:
        return upnext.get_current_context().state["pool"]

    @worker.task
    def in_thread() -> str:
        return upnext.get_current_context().state["pool"]

    @worker.task
    async def last() -> None:
        began.set()
        await asyncio.sleep(0.3)
        seen.append("last job")

    async with serving(worker, redis_url, namespace) as running:
        assert [(await one.wait()).value for one in (in_loop, in_thread)] == ["open", "open"]
        await last.submit()
        await began.wait()
        running.stopping.set()
    assert [one if isinstance(one, str) else one[:2] for one in seen] == [("entered", "w"), "last job", ("left", "w")]
    assert seen[0][2] is seen[2][2]


async def test_a_task_group_inside_it_lives_and_ends_with_it(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    ended: list[str] = []

    @worker.lifespan
    async def life() -> AsyncGenerator[asyncio.Queue[int]]:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def consume() -> None:
            while await queue.get():
                continue
            ended.append("consumer")

        async with asyncio.TaskGroup() as group:
            group.create_task(consume())
            yield queue
            queue.put_nowait(0)

    @worker.task
    async def feed() -> None:
        upnext.get_current_context().state.put_nowait(7)

    async with serving(worker, redis_url, namespace):
        await feed.wait()
    assert ended == ["consumer"]


async def test_without_one_the_state_is_none(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")

    @worker.task
    async def look() -> bool:
        return upnext.get_current_context().state is None

    async with serving(worker, redis_url, namespace):
        assert (await look.wait()).value


async def fails() -> AsyncGenerator[None]:
    raise ConnectionRefusedError("no database")
    yield


async def leaves_early() -> AsyncGenerator[None]:
    if fails is None:
        yield


async def exits() -> AsyncGenerator[None]:
    raise SystemExit(3)
    yield


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (fails, "worker 'w': its lifespan failed: ConnectionRefusedError: no database"),
        (leaves_early, "worker 'w': its lifespan never yields"),
        (exits, "worker 'w': its lifespan failed: SystemExit: 3"),
    ],
)
async def test_a_failure_is_one_line_and_nothing_serves(
    function: Any, line: str, redis_url: str, namespace: str
) -> None:
    worker = upnext.Worker("w")
    worker.lifespan(function)
    with pytest.raises(LifespanError) as caught:
        async with serving(worker, redis_url, namespace):
            raise AssertionError("it must not be ready")
    assert str(caught.value) == line


async def test_a_lifespan_that_takes_too_long_fails(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespan, "ENTER_S", 0.2)
    worker = upnext.Worker("w")

    @worker.lifespan
    async def life() -> AsyncGenerator[None]:
        await asyncio.Event().wait()
        yield

    with pytest.raises(LifespanError, match=r"did not yield within 0\.2 s"):
        async with serving(worker, redis_url, namespace):
            raise AssertionError("it must not be ready")


async def test_yielding_twice_is_one_line(redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    worker = upnext.Worker("w")

    @worker.lifespan
    async def life() -> AsyncGenerator[int]:
        yield 1
        yield 2

    async with serving(worker, redis_url, namespace):
        pass
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == [
        "worker 'w': its lifespan yields twice"
    ]


async def test_an_end_that_hangs_is_cut(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespan, "LEAVE_S", 0.2)
    worker = upnext.Worker("w")

    @worker.lifespan
    async def life() -> AsyncGenerator[None]:
        yield
        await asyncio.Event().wait()

    async with serving(worker, redis_url, namespace):
        pass
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == [
        "worker 'w': its lifespan did not end within 0.2 s of its last job"
    ]


async def test_one_that_breaks_while_jobs_run_ends_the_worker(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    breaks = asyncio.Event()
    caught: list[str] = []

    @worker.lifespan
    async def life() -> AsyncGenerator[None]:
        async def lose() -> None:
            await breaks.wait()
            raise OSError("connection lost")

        async with asyncio.TaskGroup() as group:
            group.create_task(lose())
            yield

    try:
        async with serving(worker, redis_url, namespace) as running:
            breaks.set()
            await wait_until_async(lambda: running.ended, 10, "the worker to end")
    except LifespanError as error:
        caught.append(str(error))
    assert len(caught) == 1
    assert caught[0].startswith("worker 'w': its lifespan failed while jobs ran: ExceptionGroup")


async def test_a_pool_process_has_one_of_its_own(redis_url: str, namespace: str, tmp_path: Path) -> None:
    left = tmp_path / "left"
    path = write_service(
        tmp_path,
        f"""
import os
import upnext

worker = upnext.Worker("w", sync_executor="process", sync_pool_size=1)

@worker.lifespan
async def life():
    yield os.getpid()
    with open({str(left)!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")

@worker.task
def look() -> list[int]:
    return [upnext.get_current_context().state, os.getpid(), os.getppid()]
""",
    )
    try:
        async with serving(path, redis_url, namespace):
            future = await upnext.Worker("producer").task(name="look")(lambda: None).submit()
            answer: Any = (await future.result(20)).value
        state, pid, parent = answer
        assert state == pid
        assert sorted(map(int, left.read_text().split())) == sorted([pid, parent])
    finally:
        forget(path)


async def test_hooks_of_a_worker_are_called_for_all_that_it_runs(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w")
    seen: list[tuple[Any, ...]] = []

    def own(ctx: upnext.Context, result: Any) -> None:
        seen.append(("own success", ctx.function, result))

    @worker.task(on_success=own)
    async def good() -> int:
        return 7

    @worker.task(retries=1, retry_delay=0.01)
    async def bad() -> None:
        raise ValueError("no")

    happened = worker.event("happened")

    @happened.on
    async def handler() -> None: ...

    @worker.on_start
    async def started(ctx: upnext.Context) -> None:
        seen.append(("start", ctx.function))

    @worker.on_success
    def succeeded(ctx: upnext.Context, result: Any) -> None:
        seen.append(("success", ctx.function, result))

    @worker.on_retry
    def again(ctx: upnext.Context, error: Exception) -> None:
        seen.append(("retry", ctx.function, str(error)))

    @worker.on_failure
    def failed(ctx: upnext.Context, error: Exception) -> None:
        seen.append(("failure", ctx.function, str(error)))
        raise RuntimeError("a hook that fails changes nothing")

    @worker.on_failure
    def failed_too(ctx: upnext.Context) -> None:
        seen.append(("failure, too", ctx.function))

    @worker.on_complete
    def completed() -> None:
        seen.append(("complete",))

    async with serving(worker, redis_url, namespace):
        assert (await good.wait()).value == 7
        with pytest.raises(upnext.TaskExecutionError):
            await bad.wait()
        await happened.send()
        await wait_until_async(lambda: seen.count(("complete",)) == 3, 20, "the handler to end")
    assert seen == [
        ("start", "good"),
        ("own success", "good", 7),
        ("success", "good", 7),
        ("complete",),
        ("start", "bad"),
        ("retry", "bad", "no"),
        ("start", "bad"),
        ("failure", "bad", "no"),
        ("failure, too", "bad"),
        ("complete",),
        ("start", "happened.handler"),
        ("success", "happened.handler", None),
        ("complete",),
    ]
