"""How a job says that it started: one fixed-size record appended to a file on a memory file system. No Redis call, under 1 us."""

from __future__ import annotations

import os
import struct
import time

RECORD = struct.Struct("=ddd")
"""Process id, time of the call, and a number that the job carried (its due time, or a mark)."""

_path = os.environ.get("BENCH_TICKS")
_file = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if _path else -1


def tick(carried: float = 0.0) -> None:
    """A job started now."""
    os.write(_file, RECORD.pack(os.getpid(), time.time(), carried))
