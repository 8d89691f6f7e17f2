"""`sync_executor=PROCESS`: plain functions in pool processes that are exec'd, import the service once, and die with their worker."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

import upnext
from tests.support.service import Running, forget, serving, write_service
from tests.support.waiting import wait_until_async
from upnext.core.outcome import FailureReason, JobStatus

SOURCE = '''
"""A service whose plain functions run in pool processes."""
import asyncio, ctypes, os, sys, time
from datetime import timedelta
from pathlib import Path
import upnext

worker = upnext.Worker("pooled", concurrency=2, sync_executor="process")
MARKS = Path(__file__).with_suffix(".marks")
with MARKS.open("a") as marks:
    marks.write(f"{os.getpid()}\\n")

@worker.task
def where(wait_s: timedelta = timedelta()) -> tuple[int, int, int, str]:
    time.sleep(wait_s.total_seconds())
    return os.getpid(), os.getppid(), os.getsid(0), upnext.get_current_context().job_id

@worker.task(retries=3, retry_delay=0.01)
def flaky() -> int:
    ctx = upnext.get_current_context()
    if ctx.attempt < 3:
        ctx.checkpoint({"seen": ctx.attempt})
        raise ValueError("not yet")
    return ctx.last_checkpoint["seen"]

@worker.task(retries=5, no_retry_on=KeyError)
def hopeless() -> None:
    raise KeyError("gone")

@worker.task(max_crashes=2)
def crashes(how: str) -> int:
    if upnext.get_current_context().crashes:
        return upnext.get_current_context().crashes
    return kill(how)

@worker.task(max_crashes=2)
def always_crashes() -> None:
    kill("segfault")

def kill(how):
    if how == "segfault":
        ctypes.string_at(0)
    os._exit(3)

@worker.task(timeout=0.3)
def sleeps_too_long() -> None:
    (MARKS.parent / "sleeper").write_text(str(os.getpid()))
    time.sleep(60)

@worker.task
def sleeps() -> None:
    (MARKS.parent / "sleeper").write_text(str(os.getpid()))
    time.sleep(60)

@worker.task
def not_json() -> dict:
    return {"items": [1, object()]}

@worker.task
def exits() -> None:
    sys.exit(3)

@worker.task
def leaf(number: int) -> int:
    return number * 10

@worker.task
def tree(depth: int) -> int:
    if not depth:
        return 1
    return sum(future.value_sync(20) for future in [tree.submit_sync(depth - 1) for _ in range(2)])

@worker.task
async def beside() -> str:
    return "async"
'''


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    path = write_service(tmp_path, textwrap.dedent(SOURCE))
    yield path
    forget(path)


def module(path: Path) -> Any:
    return import_module(path.stem)


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


async def test_members_are_execd_import_once_and_run_many(service: Path, redis_url: str, namespace: str) -> None:
    before = children()
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        futures = [await tasks.where.submit() for _ in range(20)]
        told = [await future.value(20) for future in futures]
        pids = {pid for pid, *_ in told}
        assert 1 <= len(pids) <= 2
        assert os.getpid() not in pids
        assert {parent for _, parent, *_ in told} == {os.getpid()}
        assert {session for *_, session, _ in told} == {os.getsid(0)}, "they die with the worker's session"
        assert [job_id for *_, job_id in told] == [future.job_id for future in futures]
        for pid in pids:
            assert b"upnext pool" in Path(f"/proc/{pid}/cmdline").read_bytes()
        imported = tasks.MARKS.read_text().split()
        assert sorted(imported) == sorted({str(os.getpid()), *map(str, pids)}), "each imports the service once"
    assert children() <= before, "none outlives its worker"


async def test_jobs_run_beside_each_other_and_beside_async_ones(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        slow = await tasks.sleeps.submit()
        await wait_until_async((service.parent / "sleeper").exists, 20)
        assert await tasks.beside.wait(wait_timeout=20)
        assert (await tasks.leaf.wait(4, wait_timeout=20)).value == 40
        await slow.cancel()


async def test_retries_and_checkpoints(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        result = await tasks.flaky.wait(wait_timeout=20)
        assert (result.value, result.attempts) == (2, 3)
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await tasks.hopeless.wait(wait_timeout=20)
        assert caught.value.task_result.attempts == 1
        assert caught.value.task_result.error == "KeyError: 'gone'"
        trace = caught.value.task_result.traceback
        assert 'raise KeyError("gone")' in trace
        assert "upnext/engine" not in trace


@pytest.mark.parametrize(("how", "cause"), [("segfault", "signal:SIGSEGV"), ("exit", "exit:3")])
async def test_a_member_that_dies_is_a_crash_of_its_job_alone(
    service: Path, redis_url: str, namespace: str, how: str, cause: str
) -> None:
    async with serving(service, redis_url, namespace) as running:
        tasks = module(service)
        neighbour = await tasks.where.submit()
        result = await tasks.crashes.wait(how, wait_timeout=20)
        assert (result.value, result.crashes, result.attempts) == (1, 1, 1)
        assert (await neighbour.result(20)).crashes == 0
        if how == "segfault":
            with pytest.raises(upnext.TaskExecutionError) as caught:
                await tasks.always_crashes.wait(wait_timeout=20)
            end = caught.value.task_result
            assert (end.status, end.failure_reason, end.crashes) == (JobStatus.DEAD, FailureReason.CRASH, 2)
            assert end.cause == cause
            assert await running.command("ZSCORE", running.keys.dead, end.job_id) is not None
        assert (await tasks.leaf.wait(1, wait_timeout=20)).value == 10


async def test_a_timeout_kills_the_member_and_is_recorded(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        await tasks.leaf.wait(1, wait_timeout=20)
        with pytest.raises(upnext.TaskTimeoutError) as caught:
            await tasks.sleeps_too_long.wait(wait_timeout=20)
        assert caught.value.task_result.failure_reason is FailureReason.TIMEOUT
        sleeper = int((service.parent / "sleeper").read_text())
        await wait_until_async(lambda: not psutil.pid_exists(sleeper), 5, "the member to be gone")
        assert (await tasks.leaf.wait(2, wait_timeout=20)).value == 20


async def test_a_cancel_kills_the_member(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        future = await tasks.sleeps.submit()
        await wait_until_async((service.parent / "sleeper").exists, 20)
        assert await future.cancel()
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await future.result(20)
        assert caught.value.task_result.status is JobStatus.CANCELLED
        sleeper = int((service.parent / "sleeper").read_text() or 0)
        await wait_until_async(lambda: not psutil.pid_exists(sleeper), 5, "the member to be gone")


async def test_values_and_exits_fail_that_job_alone(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        with pytest.raises(upnext.TaskExecutionError, match=r"result\.items\[1\]"):
            await tasks.not_json.wait(wait_timeout=20)
        with pytest.raises(upnext.TaskExecutionError, match="a task can't end its worker"):
            await tasks.exits.wait(wait_timeout=20)


async def test_nested_waits_need_no_second_slot(service: Path, redis_url: str, namespace: str) -> None:
    async with serving(service, redis_url, namespace):
        assert (await module(service).tree.wait(3, wait_timeout=60)).value == 8


async def test_a_service_that_is_no_file_is_refused(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("loose", sync_executor="process")

    @worker.task
    def plain() -> None: ...

    with pytest.raises(upnext.UsageError, match="needs a service file"):
        async with serving(worker, redis_url, namespace):
            await asyncio.sleep(0)


