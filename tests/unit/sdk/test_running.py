"""`upnext.run` and `Worker.start/stop`: what they ask of the engine (which is a stand-in here), signals, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import upnext
from tests.support.waiting import wait_until, wait_until_async
from upnext import running
from upnext.core.spec import ServiceSpec
from upnext.errors import ConflictError, UsageError


class StandInRuntime:
    """Serves until it is cancelled, then drains until its jobs are finished, or until it is cancelled again."""

    def __init__(self) -> None:
        self.calls: list[tuple[ServiceSpec, dict[str, Any]]] = []
        self.phases: list[str] = []
        self.jobs_finished = False
        self.fails_with: Exception | None = None

    async def __call__(self, service: ServiceSpec, **options: Any) -> None:
        self.calls.append((service, options))
        self.phases.append("serving")
        try:
            if self.fails_with is not None:
                raise self.fails_with
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.phases.append("draining")
            if not self.jobs_finished:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.phases.append("killed")
            self.phases.append("drained")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> StandInRuntime:
    runtime = StandInRuntime()
    monkeypatch.setattr(running, "run_service", runtime)
    monkeypatch.setenv("UPNEXT_REDIS_URL", "redis://there:6379")
    monkeypatch.setenv("UPNEXT_NAMESPACE", "shop")
    return runtime


def make_worker(name: str = "shop") -> upnext.Worker:
    worker = upnext.Worker(name)
    worker.task(name=f"{name}.run")(make_worker)
    return worker


async def test_start_and_stop(runtime: StandInRuntime) -> None:
    worker = make_worker()
    await worker.stop()
    await worker.start()
    await wait_until_async(lambda: runtime.phases == ["serving"], timeout_s=5, what="serving")
    with pytest.raises(UsageError, match="worker 'shop' is running already"):
        await worker.start()
    runtime.jobs_finished = True
    await worker.stop()
    assert runtime.phases == ["serving", "draining", "drained"]
    ((service, options),) = runtime.calls
    assert (service.name, [spec.name for spec in service.workers], service.path) == ("shop", ["shop"], __file__)
    assert options.pop("log").name == "upnext"
    assert options == {"redis_url": "redis://there:6379", "namespace": "shop", "install_signals": False}


async def test_stop_ends_what_does_not_finish_in_time(runtime: StandInRuntime) -> None:
    worker = make_worker()
    await worker.start()
    await wait_until_async(lambda: runtime.phases == ["serving"], timeout_s=5, what="serving")
    await worker.stop(timeout=0.01)
    assert runtime.phases == ["serving", "draining", "killed"]


async def test_stop_raises_what_it_failed_with(runtime: StandInRuntime) -> None:
    runtime.fails_with = upnext.BrokerRefusedError("wrong password")
    worker = make_worker()
    await worker.start()
    await wait_until_async(lambda: runtime.phases == ["serving"], timeout_s=5, what="serving")
    with pytest.raises(upnext.BrokerRefusedError, match="wrong password"):
        await worker.stop()


async def test_without_a_redis_it_does_not_start(runtime: StandInRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPNEXT_REDIS_URL")
    worker = make_worker()
    with pytest.raises(upnext.NoBrokerError):
        await worker.start()
    assert runtime.calls == []


def when(condition: Callable[[], bool], *signals: signal.Signals) -> threading.Thread:
    def act() -> None:
        for number in signals:
            wait_until(condition, timeout_s=5, what="its turn")
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_run_serves_until_a_signal(runtime: StandInRuntime) -> None:
    runtime.jobs_finished = True
    other = when(lambda: "serving" in runtime.phases, signal.SIGTERM)
    upnext.run(make_worker("a"), make_worker("b"))
    other.join()
    assert runtime.phases == ["serving", "draining", "drained"]
    assert [spec.name for spec in runtime.calls[0][0].workers] == ["a", "b"]


def test_a_second_signal_ends_it_at_once(runtime: StandInRuntime) -> None:
    first = when(lambda: "serving" in runtime.phases, signal.SIGINT)
    second = when(lambda: "draining" in runtime.phases, signal.SIGINT)
    upnext.run(make_worker(), worker_timeout=60)
    first.join()
    second.join()
    assert runtime.phases == ["serving", "draining", "killed"]


def test_run_raises_what_it_failed_with(runtime: StandInRuntime) -> None:
    runtime.fails_with = upnext.BrokerUnavailableError("connection refused")
    with pytest.raises(upnext.BrokerUnavailableError, match="connection refused"):
        upnext.run(make_worker())


def test_run_takes_workers_of_different_tasks(runtime: StandInRuntime) -> None:
    for wrong in ((), (make_worker(), 5)):
        with pytest.raises(UsageError, match=r"upnext\.run: expects one or more Workers"):
            upnext.run(*wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConflictError):
        one, two = make_worker(), upnext.Worker("other")
        two.task(name="shop.run")(make_worker)
        upnext.run(one, two)
    assert runtime.calls == []
