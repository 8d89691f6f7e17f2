"""Keeps the process of a dashboard small. For a process that does nothing else."""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8
"""As in glibc's malloc.h."""


def keep_small() -> None:
    """Call it before threads begin and before the engine is imported."""
    # Each thread that renders pages would get a heap of its own, which keeps the most that it ever needed. The interpreter runs one at a
    # time: they don't wait for each other in malloc. Other C libraries have no mallopt, or no such parameter.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
    # redis-py imports the SDK of OpenTelemetry where that is installed, 130 modules; a dashboard makes neither spans nor metrics.
    sys.modules.setdefault("opentelemetry", None)  # pyright: ignore[reportArgumentType] - None: not to be imported
