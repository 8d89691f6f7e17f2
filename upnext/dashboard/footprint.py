"""Keeps the process of a dashboard small. For a process that does nothing else."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""As in glibc's malloc.h."""
_LARGE_BYTES = 64 << 10
"""Of this size, a text has pages of memory of its own, which go back at once."""


def keep_small() -> None:
    """Call it before threads begin and before the engine is imported."""
    # Each thread that renders pages would get a heap of its own, which keeps the most that it ever needed. The interpreter runs one at a
    # time: they don't wait for each other in malloc. Other C libraries have no mallopt, or no such parameter.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        # By itself malloc raises both with each large text that is freed, and then keeps what pages of half a MiB left behind.
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
    # redis-py imports the SDK of OpenTelemetry where that is installed, 130 modules; a dashboard makes neither spans nor metrics.
    # uvicorn imports watchfiles for its --reload.
    for unused in ("opentelemetry", "watchfiles"):
        sys.modules.setdefault(unused, None)  # pyright: ignore[reportArgumentType] - None: not to be imported


def give_back() -> None:
    """Return what the imports have freed. Call it once they are done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
