"""OpenTelemetry spans of submits, queue times and attempts, in a process that asked for them (`upnext.otel.instrument`)."""

from __future__ import annotations

from typing import Any

from upnext.core.outcome import ErrorInfo
from upnext.engine import tracing
from upnext.engine.attempt import Attempt


class Spans:
    """`trace` and `context` are OpenTelemetry's modules, `tracer` is the one of this library."""

    def __init__(self, trace: Any, context: Any, tracer: Any) -> None:
        self._trace, self._context, self._tracer = trace, context, tracer

    def submitted(self, name: str) -> str | None:
        """Make the span `submit NAME`; return its traceparent, which the job's spans have as parent."""
        parent = None
        own = tracing.current()
        if own is not None and not self._trace.get_current_span().get_span_context().is_valid:
            parent = tracing.context_of(own)  # within a job whose code has no span of its own
        span = self._tracer.start_span(
            f"submit {name}", context=parent, kind=self._trace.SpanKind.PRODUCER, attributes=_facts(name)
        )
        span.end()
        return tracing.traceparent(span.get_span_context()) or own

    def begin(self, attempt: Attempt) -> None:
        """Make the span `queue NAME`, which has ended, and begin `run NAME`; attach that to this context. The executor ends it."""
        name = attempt.spec.name
        facts = {**_facts(name), "upnext.job.id": attempt.job_id, "upnext.job.attempt": attempt.attempt}
        begun_ns = int(attempt.started_at * 1e9)
        queued_ns = min(begun_ns, int(attempt.entry_id.partition(b"-")[0]) * 1_000_000)
        self._tracer.start_span(f"queue {name}", attributes=facts, start_time=queued_ns).end(begun_ns)
        attempt.span = self._tracer.start_span(
            f"run {name}", kind=self._trace.SpanKind.CONSUMER, attributes=facts, start_time=begun_ns
        )
        self._context.attach(self._trace.set_span_in_context(attempt.span))

    def failed(self, span: Any, info: ErrorInfo) -> None:
        """Note an attempt's error on its span, as the outcome has it."""
        details = {"exception.type": info.type, "exception.message": info.message}
        span.add_event("exception", {**details, "exception.stacktrace": info.traceback or ""})
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, f"{info.type}: {info.message}"[:200]))


def _facts(name: str) -> dict[str, Any]:
    return {"messaging.system": "upnext", "messaging.destination.name": name}
