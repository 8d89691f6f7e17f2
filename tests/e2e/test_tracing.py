"""A job's own spans are part of the trace in which it was submitted, across processes and from job to job."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import orjson
import pytest

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus
from upnext.engine.views import jobs as jobs_module

pytest.importorskip("opentelemetry.sdk")

SERVICE = """
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    def where() -> str:
        from opentelemetry import trace
        span = trace.get_current_span().get_span_context()
        return f"{span.trace_id:032x}"

    @worker.task
    async def child() -> str:
        return where()

    @worker.task
    async def parent() -> list[str]:
        return [where(), await (await child.submit()).value()]

    @worker.task
    def threaded() -> str:
        return where()

    pooled_worker = upnext.Worker("pooled", concurrency=2, sync_executor="process")

    @pooled_worker.task
    def pooled() -> str:
        return where()

    @pooled_worker.task
    def pooled_parent() -> list[str]:
        return [where(), child.submit_sync().value_sync(timeout=20)]

    happened = worker.event("happened")

    @happened.on
    async def listener() -> str:
        return where()

    @worker.task
    async def sender() -> str:
        await happened.send()
        return where()
"""


def handled(queue: Queue) -> list[str]:
    """What the listener's jobs returned."""
    listed = jobs_module.jobs(queue.broker, queue.broker.keys, task="happened.listener")
    found = [queue.job(one.job_id) for one in listed if one.status is JobStatus.DONE]
    return [orjson.loads(job.value or b"null") for job in found if job is not None]


def test_the_trace_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with Daemon(SERVICE, workers=1) as daemon, Queue(daemon) as queue:
        monkeypatch.setenv("UPNEXT_REDIS_URL", daemon.broker_url)
        spec = importlib.util.spec_from_file_location("service", daemon.service)
        assert spec is not None
        assert spec.loader is not None
        service: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "service", service)
        spec.loader.exec_module(service)
        with TracerProvider().get_tracer("test").start_as_current_span("order") as span:
            traced = f"{span.get_span_context().trace_id:032x}"
            jobs = [
                service.parent.submit_sync(),
                service.threaded.submit_sync(),
                service.pooled.submit_sync(),
                service.pooled_parent.submit_sync(),
                service.sender.submit_sync(),
            ]
            sent = service.happened.send_sync()
        untraced = service.child.submit_sync()
        assert jobs[0].value_sync(timeout=20) == [traced, traced]
        assert jobs[1].value_sync(timeout=20) == traced
        assert jobs[2].value_sync(timeout=20) == traced
        assert jobs[3].value_sync(timeout=20) == [traced, traced]
        assert jobs[4].value_sync(timeout=20) == traced
        assert sent == 1
        wait_until(lambda: handled(queue) == [traced, traced], 20, "a handler is part of its sender's trace")
        assert untraced.value_sync(timeout=20) == "0" * 32, "a context does not leak into the next job"
        assert service.pooled.submit_sync().value_sync(timeout=20) == "0" * 32
        assert queue.job(jobs[0].job_id) is not None
