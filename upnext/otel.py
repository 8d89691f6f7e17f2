"""OpenTelemetry spans of submits, queue times and attempts (extra `otel`)."""

from __future__ import annotations

import importlib
from typing import Any

from upnext.engine import tracing
from upnext.engine.spans import Spans
from upnext.errors import UsageError


def instrument(tracer_provider: Any = None) -> None:
    """Make spans in this process and in the workers that are forked from it. Call it where the service is imported.

    `submit NAME` (producer) when a job or an event is submitted: the parent of the job's spans. `queue NAME`: from when it was queued to
    when an attempt began. `run NAME` (consumer): one for each attempt, with `upnext.job.id` and `upnext.job.attempt`; an error's type, text
    and traceback are an event of it. So the attempts of one job, and the jobs that it submits, are one trace.

    `tracer_provider`: an OpenTelemetry TracerProvider; None: the global one. Raises UsageError without the package opentelemetry-api.
    """
    try:
        trace = importlib.import_module("opentelemetry.trace")
        context = importlib.import_module("opentelemetry.context")
    except ImportError:
        raise UsageError("upnext.otel needs opentelemetry-api: pip install '/path/to/checkout[otel]'") from None
    tracing.spans = Spans(trace, context, trace.get_tracer("upnext", tracer_provider=tracer_provider))


def uninstrument() -> None:
    """Make no further spans in this process."""
    tracing.spans = None
