"""The files of the server's data: this user's alone. Standard library only: scripts that run with -I -S import it."""

from __future__ import annotations

import os
import stat

_DATA = ("appendonlydir", "dump.rdb", "broker.lock", "broker.url")


def close_to_others(folder: str) -> None:
    """Take from others what they may do with the server's data in `folder`: payloads are in it. A folder that was there keeps its mode.

    What a server of an earlier start made with the umask of its time is mended. Raises OSError.
    """
    for path in (os.path.join(folder, name) for name in _DATA):
        _keep_private(path)
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                _keep_private(os.path.join(path, name))


def _keep_private(path: str) -> None:
    try:
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
            os.chmod(path, stat.S_IMODE(status.st_mode) & 0o700)
    except FileNotFoundError:
        return
