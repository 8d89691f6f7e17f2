"""What an import left open that forked children must not share: connections, listeners, databases."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator

Descriptors = frozenset[tuple[int, int, int]]
"""(number, device, inode) of each."""

_DATABASE = re.compile(r"\.(db3?|sqlite3?|s3db|duckdb|mdb|gdbm)\Z", re.IGNORECASE)
_SIGNATURES = (b"SQLite format 3\0", b"DUCK")
"""How a database file begins, or goes on after eight bytes."""
_HEAD_BYTES = 16


def descriptors() -> Descriptors:
    """All that this process has open."""
    return frozenset((fd, status.st_dev, status.st_ino) for fd, status in _open())


def sockets(before: Descriptors = frozenset()) -> list[str]:
    """What each socket is, and where it leads, that was opened since `before` and that several processes can't share.

    These are network sockets, and Unix sockets that are connected to a server or listen: a reply goes to the process that reads first.
    Not so are pairs, which have no name (event loops have one), and Unix datagrams, as those to the system's log: each is whole.
    """
    return [
        where
        for fd, status in _open()
        if stat.S_ISSOCK(status.st_mode) and (fd, status.st_dev, status.st_ino) not in before and (where := _where(fd))
    ]


def databases(before: Descriptors = frozenset()) -> list[str]:
    """Path of each database file that was opened since `before`."""
    return sorted(
        {
            path
            for fd, status in _open()
            if stat.S_ISREG(status.st_mode)
            and (fd, status.st_dev, status.st_ino) not in before
            and _is_database(fd, path := os.readlink(f"/proc/self/fd/{fd}"))
        }
    )


def _open() -> Iterator[tuple[int, os.stat_result]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.fstat(int(name))
        except OSError:
            continue  # the one that listed them


def _where(fd: int) -> str:
    """As `network socket (to HOST:PORT)`; empty for what may be shared."""
    try:
        with socket.socket(fileno=os.dup(fd)) as found:
            if found.family == socket.AF_UNIX:
                end = "" if found.type == socket.SOCK_DGRAM else _end(found)
                return end and f"Unix socket ({end})"
            return f"network socket ({_end(found)})" if found.family in (socket.AF_INET, socket.AF_INET6) else ""
    except OSError:
        return ""


def _end(found: socket.socket) -> str:
    """The server that it leads to, else where it is bound."""
    try:
        preposition, address = "to", found.getpeername()
    except OSError:
        preposition, address = "on", found.getsockname()
    if isinstance(address, tuple):
        host, port = address[:2]  # pyright: ignore[reportUnknownVariableType]
        return f"{preposition} {host}:{port}"
    path = os.fsdecode(address).replace("\0", "@")
    return f"{preposition} {path}" if path else ""


def _is_database(fd: int, path: str) -> bool:
    """By its beginning, read through the descriptor itself: closing another one of the file would give up its locks."""
    try:
        head = os.pread(fd, _HEAD_BYTES, 0)
    except OSError:
        head = b""  # opened for writing only
    return any(head.startswith(one) or head[8:].startswith(one) for one in _SIGNATURES) or bool(_DATABASE.search(path))
