"""`sync_executor=PROCESS`: plain functions in pool processes that are exec'd, import the service once, and die with their worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.processes import dies_with_us
from tests.support.service import forget, serving, write_service
from tests.support.waiting import wait_until, wait_until_async
from upnext.core.outcome import FailureReason, JobStatus

SOURCE = '''
"""A service whose plain functions run in pool processes."""
import asyncio, contextvars, ctypes, os, sys, threading, time
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

@worker.task(timeout=2.0)
def sleeps_too_long() -> None:
    (MARKS.parent / "sleeper").write_text(str(os.getpid()))
    time.sleep(60)

@worker.task
async def held_up() -> str:
    while not (MARKS.parent / "let go").exists():
        await asyncio.sleep(0.01)
    return "both"

@worker.task
def impatient() -> list[str]:
    futures = [held_up.submit_sync() for _ in range(2)]
    reports = []

    def wait(future):
        try:
            future.value_sync(0.2)
        except TimeoutError:
            reports.append("ran out")

    def copies():
        return [threading.Thread(target=contextvars.copy_context().run, args=(wait, future)) for future in futures]

    threads = copies()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (MARKS.parent / "let go").touch()
    return [*reports, *{future.value_sync(30) for future in futures}]

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
    return sum(future.value_sync(60) for future in [tree.submit_sync(depth - 1) for _ in range(2)])

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


def noted(service: Path) -> int:
    """The pid that the sleeper has written; 0 before."""
    note = service.parent / "sleeper"
    return int(note.read_text() or 0) if note.exists() else 0


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


async def test_members_are_execd_import_once_and_run_many(service: Path, redis_url: str, namespace: str) -> None:
    before = children()
    async with serving(service, redis_url, namespace):
        tasks = module(service)
        futures = [await tasks.where.submit() for _ in range(20)]
        reported = [await future.value(60) for future in futures]
        pids = {pid for pid, *_ in reported}
        assert 1 <= len(pids) <= 2
        assert os.getpid() not in pids
        assert {parent for _, parent, *_ in reported} == {os.getpid()}
        assert {session for *_, session, _ in reported} == {os.getsid(0)}, "they die with the worker's session"
        assert [job_id for *_, job_id in reported] == [future.job_id for future in futures]
        for pid in pids:
            assert "upnext pool" in " ".join(psutil.Process(pid).cmdline())
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
        trace = caught.value.task_result.traceback or ""
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
        assert (await neighbour.result(60)).crashes == 0
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
        sleeper = await wait_until_async(lambda: noted(service), 20)
        assert await future.cancel()
        with pytest.raises(upnext.TaskExecutionError) as caught:
            await future.result(60)
        assert caught.value.task_result.status is JobStatus.CANCELLED
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


async def test_waits_of_several_threads_and_one_that_runs_out(service: Path, redis_url: str, namespace: str) -> None:
    """At concurrency 2 both slots are taken by children that end only after the waits for them ran out, or a thread's second wait began."""
    async with serving(service, redis_url, namespace):
        assert (await module(service).impatient.wait(wait_timeout=60)).value == ["ran out", "ran out", "both"]
        assert (await module(service).leaf.wait(2, wait_timeout=20)).value == 20, "every slot is free again"


async def test_a_service_that_is_no_file_is_refused(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("loose", sync_executor="process")

    @worker.task
    def plain() -> None: ...

    with pytest.raises(upnext.UsageError, match="needs a service file"):
        async with serving(worker, redis_url, namespace):
            await asyncio.sleep(0)


DAEMON_SERVICE = '''
    """Plain functions in pool processes of a daemon's children."""
    import os, time
    from pathlib import Path
    import upnext

    worker = upnext.Worker("pooled", concurrency=1, sync_executor="process")

    @worker.task
    def where(name: str, pause: float) -> list[int]:
        path = Path(__file__).parent / name
        if not path.exists():
            path.write_text(str(os.getpid()))
            time.sleep(pause)
        return [os.getpid(), os.getppid(), upnext.get_current_context().crashes]
'''


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_members_die_with_their_worker(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    handles = upnext.Worker("handles")

    @handles.task
    def where(name: str, pause: float) -> list[int]:
        return []

    running = daemon(DAEMON_SERVICE, redis_url=redis_url, namespace=namespace, workers=1)
    future = where.submit_sync("first", 60.0)
    note = running.directory / "first"
    member = int(wait_until(lambda: note.exists() and note.read_text(), 20, "the member to begin"))
    worker = running.worker_pids()["worker-1"]
    assert os.getsid(member) == os.getsid(worker) == worker
    if victim == "supervisor":
        running.kill()
    else:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(member), 5, "the member to die with its worker")
    if victim == "worker":
        _, parent, crashes = future.value_sync(30)
        assert (parent, crashes) == (running.worker_pids()["worker-1"], 1)


SCRIPT = '''
"""A script that runs its own worker, as `python script.py`."""
import os
import upnext

worker = upnext.Worker("scripted", concurrency=1, sync_executor="process")

@worker.task
def pids() -> list[int]:
    return [os.getpid(), os.getppid()]

{guard}upnext.run(worker)
'''


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_that_runs_itself(
    tmp_path: Path, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    script = write_service(tmp_path, SCRIPT.format(guard='if __name__ == "__main__": ' if guarded else ""))
    handles = upnext.Worker("handles")

    @handles.task
    def pids() -> list[int]:
        return []

    process = subprocess.Popen(
        dies_with_us([sys.executable, str(script)]), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        future = pids.submit_sync()
        if guarded:
            member, parent = future.value_sync(30)
            assert parent == process.pid
            assert member != parent
        else:
            with pytest.raises(upnext.TaskExecutionError, match="guard the call with if __name__"):
                future.value_sync(30)
    finally:
        process.terminate()
        assert process.wait(60) == 0
