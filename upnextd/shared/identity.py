"""The daemon's name for itself in Redis, and the place that it is bound to.

The name is random and made once for each state directory, so that a daemon that starts again knows what it held before and takes it back at
once. A copy of the directory (an image of a machine, a backup, a volume) must not do that: the original may be alive. So the name is stored
with the place where it was made, and in another place there is a new one.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import orjson

FILE = "daemon.id"
_ID = re.compile(r"[0-9a-f]{16}\Z")


@dataclass(frozen=True, slots=True)
class InstanceView:
    """Where a name was made. inode: of the file that holds it; a copy has another one.

    After a reboot a machine is another place: an image that was started twice can't be distinguished from a machine that was started again.
    """

    machine: str
    boot: str
    host: str
    inode: int


@dataclass(frozen=True, slots=True)
class Identity:
    daemon_id: str
    is_known: bool
    """It was made here, in an earlier life of this daemon: whatever carries it is ours."""


def identify(state_dir: Path) -> Identity:
    """Read the name, or make one. Call it while holding the lock of the directory. Raises OSError."""
    path = state_dir / FILE
    try:
        stored, inode = path.read_bytes(), path.stat().st_ino
    except FileNotFoundError:
        stored, inode = b"", 0
    known = known_id(stored, _place(inode))
    if known is not None:
        with suppress(PermissionError):  # another user's, who let us in
            path.chmod(0o600)
        return Identity(known, is_known=True)
    fresh = new_id()
    store(state_dir, fresh)
    return Identity(fresh, is_known=False)


def store(state_dir: Path, daemon_id: str) -> None:
    """Make this the name that is found here from now on. Raises OSError."""
    path = state_dir / FILE
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        place = _place(os.fstat(file.fileno()).st_ino)
        file.write(stored_form(daemon_id, place))
    unfinished.replace(path)


def new_id() -> str:
    return uuid4().hex[:16]


def stored_form(daemon_id: str, place: InstanceView) -> bytes:
    return b"%s\n%s\n" % (daemon_id.encode(), orjson.dumps(asdict(place)))


def known_id(stored: bytes, here: InstanceView) -> str | None:
    """The name in the file's bytes; None when there is none, it can't be read, or it was made in another place."""
    daemon_id, _, made_in = stored.decode("ascii", "replace").partition("\n")
    try:
        place: Any = orjson.loads(made_in)
    except orjson.JSONDecodeError:
        return None
    if not _ID.match(daemon_id) or not isinstance(place, dict):
        return None
    return daemon_id if cast("dict[str, Any]", place) == asdict(here) else None


def _place(inode: int) -> InstanceView:
    return InstanceView(_text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id"), socket.gethostname(), inode)


def _text(path: str) -> str:
    """ "" where there is none, as in most containers."""
    try:
        return Path(path).read_text("ascii", "replace").strip()
    except OSError:
        return ""
