"""A job's own spans are part of the trace in which it was submitted, across processes and from job to job."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
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


SPANS_SERVICE = """
    import json, os
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    import upnext
    import upnext.otel

    class ToFile(SpanExporter):
        def export(self, spans):
            with open(os.environ["SPANS"], "a") as file:
                for span in spans:
                    parent = span.parent and f"{span.parent.span_id:016x}"
                    events = [event.attributes.get("exception.type") for event in span.events]
                    file.write(json.dumps({
                        "name": span.name, "trace": f"{span.context.trace_id:032x}", "id": f"{span.context.span_id:016x}", "parent": parent,
                        "attempt": span.attributes.get("upnext.job.attempt"), "job": span.attributes.get("upnext.job.id"),
                        "took_ns": span.end_time - span.start_time, "ok": span.status.is_ok, "events": events,
                    }) + "\\n")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    upnext.otel.instrument(provider)

    worker = upnext.Worker("jobs", concurrency=4)
    happened = worker.event("happened")

    @worker.task(retries=1, retry_delay=0.01)
    async def flaky() -> None:
        if upnext.get_current_context().attempt == 1:
            raise ValueError("once")
        await happened.send()

    @happened.on
    def listener() -> None: ...
"""


def test_a_job_has_spans_where_its_service_asks_for_them(tmp_path: Path) -> None:
    file = tmp_path / "spans"

    def spans() -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []

    with Daemon(SPANS_SERVICE, workers=1, env={"SPANS": str(file)}) as daemon, Queue(daemon) as queue:
        queue.ended(queue.submit("flaky"))
        wait_until(lambda: any(one["name"] == "run happened.listener" for one in spans()), 20, "the handler's span")
    found = spans()
    runs = [one for one in found if one["name"] == "run flaky"]
    assert [(one["attempt"], one["ok"], one["events"]) for one in runs] == [
        (1, False, ["ValueError"]),
        (2, True, []),
    ]
    assert [one["attempt"] for one in found if one["name"] == "queue flaky"] == [1, 2]
    assert len({one["job"] for one in found if one["name"].endswith("flaky")}) == 1
    send = next(one for one in found if one["name"] == "submit happened")
    handled = next(one for one in found if one["name"] == "run happened.listener")
    assert (send["trace"], send["parent"]) == (runs[1]["trace"], runs[1]["id"])
    assert (handled["trace"], handled["parent"]) == (send["trace"], send["id"])
