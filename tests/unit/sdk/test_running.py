"""`upnext.run` and `Worker.start/stop`: what they ask of the engine (a stand-in here), and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import upnext
from upnext import running
from upnext.core.spec import ServiceSpec
from upnext.errors import ConflictError, UsageError


class StandInRuntime:
    """Serves until it is asked to stop, then drains until its jobs are finished, or until it is cancelled."""

    def __init__(self) -> None:
        self.calls: list[tuple[ServiceSpec, dict[str, Any]]] = []
        self.phases: list[str] = []
        self.jobs_finished = True
        self.fails_with: Exception | None = None
        self.fails_later_with: Exception | None = None

    async def __call__(
        self,
        service: ServiceSpec,
        *,
        on_ready: Callable[[], None] = lambda: None,
        stopping: asyncio.Event | None = None,
        **options: Any,
    ) -> list[str]:
        self.calls.append((service, options))
        if self.fails_with is not None:
            raise self.fails_with
        self.phases.append("serving")
        on_ready()
        if stopping is None:
            return ["shop.run:n1-0"]
        await stopping.wait()
        self.phases.append("draining")
        if self.fails_later_with is not None:
            raise self.fails_later_with
        if not self.jobs_finished:
            try:
                await asyncio.Event().wait()
            finally:
                self.phases.append("killed")
        self.phases.append("drained")
        return []


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
    assert runtime.phases == ["serving"]
    with pytest.raises(UsageError, match="worker 'shop' is running already"):
        await worker.start()
    await worker.stop()
    assert runtime.phases == ["serving", "draining", "drained"]
    ((service, options),) = runtime.calls
    assert (service.name, [spec.name for spec in service.workers], service.path) == (__name__, ["shop"], __file__)
    assert (options["namespace"], options["install_signals"]) == ("shop", False)
    await worker.start()
    await worker.stop()


async def test_stop_ends_what_does_not_finish_in_time(
    runtime: StandInRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.jobs_finished = False
    worker = make_worker()
    await worker.start()
    await worker.stop(timeout=0.01)
    assert runtime.phases == ["serving", "draining", "killed"]
    assert caplog.messages == ["the worker did not stop within 0.01 s; jobs that were running will run again"]


async def test_start_raises_what_keeps_it_from_starting(runtime: StandInRuntime) -> None:
    runtime.fails_with = upnext.BrokerRefusedError("wrong password")
    worker = make_worker()
    with pytest.raises(upnext.BrokerRefusedError, match="wrong password"):
        await worker.start()
    runtime.fails_with = None
    await worker.start()
    await worker.stop()


async def test_stop_raises_what_it_failed_with(runtime: StandInRuntime) -> None:
    runtime.fails_later_with = upnext.BrokerUnavailableError("gone")
    worker = make_worker()
    await worker.start()
    with pytest.raises(upnext.BrokerUnavailableError, match="gone"):
        await worker.stop()


async def test_without_a_redis_it_does_not_start(runtime: StandInRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPNEXT_REDIS_URL")
    worker = make_worker()
    with pytest.raises(upnext.NoBrokerError):
        await worker.start()
    assert runtime.calls == []


def test_run_serves_all_workers_and_tells_what_was_left(
    runtime: StandInRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    upnext.run(make_worker("a"), make_worker("b"), worker_timeout=5)
    ((service, options),) = runtime.calls
    assert [spec.name for spec in service.workers] == ["a", "b"]
    assert options == {
        "redis_url": None,
        "namespace": "shop",
        "install_signals": True,
        "stop_s": 5,
        "front": None,
        "passing": False,
        "logs_jobs": True,
    }
    assert caplog.messages == ["these jobs did not finish in time, and will run again: shop.run:n1-0"]


def test_the_environments_url_counts_before_the_workers(
    runtime: StandInRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = upnext.Worker("shop", redis_url="redis://own:6379")
    upnext.run(worker)
    monkeypatch.delenv("UPNEXT_REDIS_URL")
    upnext.run(worker)
    urls = [service.workers[0].redis_url for service, _ in runtime.calls]
    assert urls == ["redis://there:6379", "redis://own:6379"]


def test_run_raises_what_it_failed_with(runtime: StandInRuntime) -> None:
    runtime.fails_with = upnext.BrokerUnavailableError("connection refused")
    with pytest.raises(upnext.BrokerUnavailableError, match="connection refused"):
        upnext.run(make_worker())


def test_run_takes_workers_of_different_tasks(runtime: StandInRuntime) -> None:
    for wrong in ((), (make_worker(), 5)):
        with pytest.raises(UsageError, match=r"upnext\.run: expects one or more Workers"):
            upnext.run(*wrong)  # pyright: ignore[reportArgumentType]
    one, two = make_worker(), upnext.Worker("other")
    two.task(name="shop.run")(make_worker)
    with pytest.raises(ConflictError):
        upnext.run(one, two)
    assert runtime.calls == []
