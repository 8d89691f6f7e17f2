"""Run as a script in front of the broker: tie it to the supervisor's life and to the lock of its data, close these to others, become it.

Argv: PARENT_PID LOCK_PATH WAIT_S SERVER ARG… Exits 73 when the lock stays held for WAIT_S: two servers on one directory would write one
append-only file. The lock is inherited by the server on purpose, so it lasts exactly as long as the server does. Standard library only,
for it runs with -I -S.
"""

import ctypes
import fcntl
import os
import signal
import stat
import sys
import time

_PR_SET_PDEATHSIG = 1
_EX_CANTCREAT = 73
_POLL_S = 0.02
_DATA = ("appendonlydir", "dump.rdb", "broker.lock", "broker.url")


def main() -> None:
    parent_pid, lock_path, wait_s, server = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
    os.umask(0o077)
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.stderr.write(f"another broker holds {lock_path}\n")
                sys.exit(_EX_CANTCREAT)
            time.sleep(_POLL_S)
    try:
        close_to_others(os.path.dirname(lock_path))
    except OSError as error:
        sys.stderr.write(f"{error.filename} is open to others, and its mode can't be changed: {error.strerror}\n")
        sys.exit(_EX_CANTCREAT)
    os.set_inheritable(fd, True)
    os.execv(server[0], server)  # noqa: S606 - no shell is wanted


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


if __name__ == "__main__":
    main()
