"""Run as a script in front of the broker: tie it to the supervisor's life and to the lock of its data, then become it.

Argv: PARENT_PID LOCK_PATH WAIT_S SERVER ARG… Exits 73 when the lock stays held for WAIT_S: two servers on one directory would write one
append-only file. The lock is inherited by the server on purpose, so it lasts exactly as long as the server does. Standard library only,
for it runs with -I -S.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_EX_CANTCREAT = 73
_POLL_S = 0.02


def main() -> None:
    parent_pid, lock_path, wait_s, server = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
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
    os.set_inheritable(fd, True)
    os.execv(server[0], server)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
