"""OpenTelemetry's trace context on a job's way, where OpenTelemetry is installed: a W3C traceparent in the job's meta.

What a job's own instrumentation traces becomes part of the trace in which the job was submitted. Spans are made only where a program
asked for them (`upnext.otel.instrument`): see `upnext.engine.spans`.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from typing import Any, Protocol

from upnext.core.entry import Meta
from upnext.core.outcome import ErrorInfo
from upnext.engine.attempt import CURRENT, Attempt

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")


class SpanMaker(Protocol):
    """What `upnext.engine.spans.Spans` does."""

    def submitted(self, name: str) -> str | None: ...

    def begin(self, attempt: Attempt) -> None: ...

    def failed(self, span: Any, info: ErrorInfo) -> None: ...


spans: SpanMaker | None = None
"""Makes the spans of this process, where the program asked for them."""


def submitted(name: str) -> str | None:
    """The traceparent that goes along with a job of this task, or of handlers of this event, that is submitted here."""
    return current() if spans is None else spans.submitted(name)


def begin(attempt: Attempt) -> None:
    """Make this context part of the job's trace: of its attempt's span, where there are spans."""
    if attempt.meta is not None and attempt.meta.trace is not None:
        attach(attempt.meta.trace)
    if spans is not None:
        spans.begin(attempt)


def traceparent_of(attempt: Attempt) -> str | None:
    """What a pool process attaches: the attempt's own span, else what the submitter sent along."""
    if attempt.span is not None:
        return traceparent(attempt.span.get_span_context())
    return None if attempt.meta is None else attempt.meta.trace


def traceparent(span: Any) -> str | None:
    """In the format of W3C Trace Context, from an OpenTelemetry span context."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else None


def current() -> str | None:
    """The traceparent of the caller's span, else of the job that it runs in; None: it isn't traced."""
    # Who has a span has imported it, to the end: another thread may be in the middle of it.
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is not None and not getattr(trace.__spec__, "_initializing", False):
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return traceparent(span)
    meta: Meta | None = getattr(CURRENT.get(None), "meta", None)
    return None if meta is None else meta.trace


def attach(parent: str) -> None:
    """Whatever is traced in this context from now on is part of that trace. Does nothing without OpenTelemetry."""
    found = context_of(parent)
    modules = _opentelemetry()
    if modules is not None and found is not None:
        modules[1].attach(found)


def context_of(parent: str) -> Any:
    """An OpenTelemetry context in which that span is the current one; None for what is no traceparent, or without OpenTelemetry."""
    found = _TRACEPARENT.match(parent)
    modules = _opentelemetry()
    if found is None or modules is None:
        return None
    trace, _ = modules
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    span = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return trace.set_span_in_context(trace.NonRecordingSpan(span)) if span.is_valid else None


@cache
def _opentelemetry() -> tuple[Any, Any] | None:
    try:
        return importlib.import_module("opentelemetry.trace"), importlib.import_module("opentelemetry.context")
    except ImportError:
        return None
