"""OpenTelemetry's trace context on a job's way, where OpenTelemetry is installed: a W3C traceparent in the job's meta.

Nothing is traced here. What a job's own instrumentation traces becomes part of the trace in which the job was submitted.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from typing import Any

from upnext.core.entry import Meta
from upnext.engine.attempt import CURRENT

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")


def current() -> str | None:
    """The traceparent of the caller's span, else of the job that it runs in; None: it isn't traced."""
    # Who has a span has imported it, to the end: another thread may be in the middle of it.
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is not None and not getattr(trace.__spec__, "_initializing", False):
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    meta: Meta | None = getattr(CURRENT.get(None), "meta", None)
    return None if meta is None else meta.trace


def attach(traceparent: str) -> None:
    """Whatever is traced in this context from now on is part of that trace. Does nothing without OpenTelemetry."""
    found = _TRACEPARENT.match(traceparent)
    modules = _opentelemetry()
    if found is None or modules is None:
        return
    trace, context = modules
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    span = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    if span.is_valid:
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(span)))


@cache
def _opentelemetry() -> tuple[Any, Any] | None:
    try:
        return importlib.import_module("opentelemetry.trace"), importlib.import_module("opentelemetry.context")
    except ImportError:
        return None
