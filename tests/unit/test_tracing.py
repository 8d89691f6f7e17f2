"""The traceparent in a job's meta."""

from __future__ import annotations

import contextvars
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from upnext.engine import tracing
from upnext.engine.attempt import CURRENT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class _Traced:
    class meta:  # noqa: N801 - stands in for an attempt's attribute
        trace = PARENT


def test_without_a_span_nothing_is_said() -> None:
    assert tracing.current() is None


def test_a_job_without_opentelemetry_passes_its_trace_on() -> None:
    traced: Any = _Traced()
    context = contextvars.copy_context()
    context.run(CURRENT.set, traced)
    assert context.run(tracing.current) == PARENT


def test_attach_and_current_are_inverse() -> None:
    pytest.importorskip("opentelemetry.trace")
    context = contextvars.copy_context()
    context.run(tracing.attach, PARENT)
    assert context.run(tracing.current) == PARENT
    assert tracing.current() is None


@pytest.mark.parametrize(
    "bad", ["", "nonsense", PARENT.upper(), PARENT + "0", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"]
)
def test_what_is_no_traceparent_is_ignored(bad: str) -> None:
    context = contextvars.copy_context()
    context.run(tracing.attach, bad)
    assert context.run(tracing.current) is None


def test_a_module_that_another_thread_is_importing_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    half = ModuleType("opentelemetry.trace")
    half.__spec__ = ModuleSpec("opentelemetry.trace", None)
    half.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", half)
    assert tracing.current() is None
