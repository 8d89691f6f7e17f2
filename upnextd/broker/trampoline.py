"""Run as a script in front of the broker: tie it to the supervisor's life and to the lock of its data, close these to others, become it.

Argv: PARENT_PID LOCK_PATH WAIT_S SERVER ARG… Exits 73 when the lock stays held for WAIT_S: two servers on one directory would write one
append-only file. The lock file gets the parent's pid. The lock is inherited by the server on purpose, so it lasts exactly as long as the
server does. The standard library and what needs no more than that, for it runs with -I -S.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from upnext.embedded.private_files import close_to_others

_PR_SET_PDEATHSIG = 1
_EX_CANTCREAT = 73
_POLL_S = 0.02


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
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{parent_pid} upnextd\n".encode(), 0)
    os.set_inheritable(fd, True)
    os.execv(server[0], server)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
