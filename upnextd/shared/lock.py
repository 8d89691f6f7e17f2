"""One daemon per state directory, by flock: the kernel releases it with the process, so there is no stale lock."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class LockedError(Exception):
    """Another daemon holds the lock. `pid` is what it wrote there, "?" when that can't be read."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"another upnextd (pid {pid}) holds {path}")
        self.path = path
        self.pid = pid


def acquire(path: Path) -> int:
    """Take the lock and write our pid into it; returns its descriptor (close-on-exec: children don't hold it).

    Raises LockedError, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(fd, 32).decode("ascii", "replace").strip() or "?"
        os.close(fd)
        raise LockedError(path, pid) from None
    with suppress(PermissionError):  # another user's, who let us in
        os.fchmod(fd, 0o600)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
