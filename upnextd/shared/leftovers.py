"""Processes that jobs of this daemon started and left behind, found by the mark in their environment, and ended.

What a job starts is killed with its worker when it stays in the worker's session. One that makes a session of its own, or that outlives a
supervisor that was killed, is found by this mark only. Not found: what was started with another environment, or as another user.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

VARIABLE = "UPNEXTD_DAEMON"

_ROUNDS = 500
_ROUND_S = 0.01
_SETTLED_ROUNDS = 2
"""So many looks in a row must find nothing: a process that forks may have hidden its child from one of them."""


def end_all(daemon_id: str) -> int:
    """SIGKILL to whatever carries this daemon's mark, until nothing is left, 5 s at most; -> how many there were.

    This process and those that it descends from are spared. Blocks. Raises OSError when /proc can't be read.
    """
    mark = f"{VARIABLE}={daemon_id}".encode()
    spared = _ancestry()
    killed: set[int] = set()
    quiet = 0
    for _ in range(_ROUNDS):
        found = carriers(mark, spared)
        killed.update(pid for pid in found if _kill(pid, mark))
        quiet = 0 if found else quiet + 1
        if quiet == _SETTLED_ROUNDS:
            break
        time.sleep(_ROUND_S)
    return len(killed)


def carriers(mark: bytes, spared: set[int]) -> list[int]:
    """Living processes that have `mark` (`NAME=VALUE`) in the environment that they were started with."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if pid not in spared and _carries(pid, mark)]


def _carries(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return mark in file.readall().split(b"\0")
    except OSError:
        return False  # gone, or another user's


def _kill(pid: int, mark: bytes) -> bool:
    """By pidfd, looked at once more: the number may be another's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _carries(pid, mark):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def _ancestry() -> set[int]:
    pid, found = os.getpid(), set[int]()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = 0 if (parent := _parent(pid)) is None else parent
    return found


def _parent(pid: int) -> int | None:
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        stat = file.read()
        return int(stat[stat.rindex(b")") + 2 :].split(b" ", 2)[1])
    return None
