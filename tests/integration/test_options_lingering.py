"""max_concurrency counts what really runs: also what goes on after its timeout or its cancel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import upnext
from tests.support.daemon import Daemon
from tests.support.service import serving
from tests.support.waiting import wait_until, wait_until_async
from upnext.engine.worker import executor, middleware


async def test_a_thread_past_its_timeout_keeps_its_permit(redis_url: str, namespace: str) -> None:
    worker = upnext.Worker("w", concurrency=2)
    running: list[str] = []
    most: list[int] = []
    let_go = threading.Event()

    @worker.task(timeout=0.2, max_concurrency=1)
    def blocks(name: str) -> str:
        running.append(name)
        most.append(len(running))
        if name != "last":
            let_go.wait(60)
        running.remove(name)
        return name

    async with serving(worker, redis_url, namespace, copies=2) as service:
        first, second = await blocks.submit("first"), await blocks.submit("second")
        with pytest.raises(upnext.TaskTimeoutError):
            await first.result(30)
        last = await blocks.submit("last")
        with pytest.raises(TimeoutError):
            await second.result(1.5)
        assert running == ["first"]
        await second.cancel()
        let_go.set()
        assert await last.value(30) == "last"
        assert set(most) == {1}

        async def none_lingers() -> bool:
            return await service.command("EXISTS", service.keys.lingering) == 0

        await wait_until_async(none_lingers)


async def test_a_coroutine_that_does_not_heed_its_cancel_keeps_its_permit(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.1)
    monkeypatch.setattr(middleware, "GRACE_S", 0.1)
    worker = upnext.Worker("w", concurrency=2)
    let_go = asyncio.Event()
    ended: list[str] = []

    @worker.task(timeout=0.2, max_concurrency=1)
    async def stubborn(name: str) -> str:
        while name == "first" and not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        ended.append(name)
        return name

    async with serving(worker, redis_url, namespace, copies=2):
        first, second = await stubborn.submit("first"), await stubborn.submit("second")
        with pytest.raises(upnext.TaskTimeoutError):
            await first.result(30)
        with pytest.raises(TimeoutError):
            await second.result(1.5)
        let_go.set()
        assert await second.value(30) == "second"
        assert ended == ["first", "second"]


SERVICE = """
    import os, pathlib, time
    import upnext

    worker = upnext.Worker("w", concurrency=2)

    @worker.task(timeout=0.3, max_concurrency=1)
    def blocks(pid_file: str) -> None:
        pathlib.Path(pid_file).write_text(str(os.getpid()))
        time.sleep(600)
"""


def test_the_permit_of_a_thread_is_kept_until_its_process_is_gone(
    daemon: Callable[..., Daemon], redis_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPNEXT_REDIS_URL", redis_url)
    monkeypatch.setenv("UPNEXT_NAMESPACE", namespace)
    one = daemon(SERVICE, redis_url=redis_url, namespace=namespace, workers=2, wait=False)
    one.wait_ready(60)
    handles = upnext.Worker("handles")

    @handles.task(timeout=0.3, max_concurrency=1)
    def blocks(pid_file: str) -> None: ...

    files = [tmp_path / name for name in ("first", "second")]
    first, _ = [blocks.submit_sync(str(file)) for file in files]
    with pytest.raises(upnext.TaskTimeoutError):
        first.result_sync(60)
    wait_until(lambda: files[1].exists() and files[1].read_text(), 120, "the second to start")
    pid = int(files[0].read_text())
    assert not Path(f"/proc/{pid}").exists(), "its process was gone before"
