"""Run as a script between `upnext run` and its broker: keeps the server running for as long as that process lives.

Argv: one JSON object, the fields of `Order`. The server has the lock of its data for as long as it runs, so that no two servers write one
append-only file. `up` goes to stdout once the server answers. It ends, and the server with it, on SIGTERM or when the lifeline reads end of
file: the kernel closes the other end with the process that holds it. Exits 73 when the lock stays held, 1 when the server does not start.
The standard library and what needs no more than that, for it runs with -I -S; and nothing that only Linux has.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from upnext.embedded.private_files import close_to_others

LOCKED = 73
"""The exit code when another server has the lock."""
_POLL_S = 0.01
_ANSWER_S = 1.0
_STOP_S = 10.0
_AGAIN_FIRST_S = 0.1
_AGAIN_MOST_S = 5.0
_PROVEN_S = 10.0


@dataclass(frozen=True)
class Order:
    """What to keep, for whom. Paths are text; `owner` is what is written into the lock."""

    lifeline: int
    owner: str
    lock: str
    lock_wait_s: float
    url: str
    url_file: str
    socket: str
    log: str
    boot_s: float
    server: list[str]


def _wake(*_: object) -> None:
    """A handler, so that the signal reaches the wake-up descriptor."""


class StopRequests:
    """Receives the lifeline's end and SIGTERM, and wakes up when a child ends."""

    def __init__(self, lifeline: int) -> None:
        self._lifeline = lifeline
        self._asked = False
        self._wakes, writing = os.pipe()
        for fd in (self._wakes, writing):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, _wake)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def asked(self, wait_s: float | None) -> bool:
        """Whether to end. Waits for that for `wait_s` seconds at most (None: without end), and no longer than until a signal comes."""
        ready, _, _ = select.select([self._lifeline, self._wakes], [], [], 0 if self._asked else wait_s)
        if self._wakes in ready:
            os.read(self._wakes, 4096)
        return self._asked or self._lifeline in ready


def main() -> int:
    order = Order(**json.loads(sys.argv[1]))
    os.umask(0o077)
    stop = StopRequests(order.lifeline)
    lock = _locked(order, stop)
    if lock is None:
        return LOCKED
    close_to_others(os.path.dirname(order.lock))
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    delay_s = _AGAIN_FIRST_S
    is_up = False
    while True:
        born = time.monotonic()
        server = subprocess.Popen(order.server, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock])
        if not is_up:
            is_up = _boot(order, server, stop)
        while is_up and server.poll() is None and not stop.asked(None):
            pass
        if not is_up or server.poll() is None:
            _end(order, server)
            return 0 if is_up or stop.asked(0) else 1
        delay_s = _AGAIN_FIRST_S if time.monotonic() - born > _PROVEN_S else min(delay_s * 2, _AGAIN_MOST_S)
        if stop.asked(delay_s):
            _end(order, server)
            return 0


def _locked(order: Order, stop: StopRequests) -> int | None:
    """The descriptor of the lock, with the owner's name in it; None when another has it for too long."""
    fd = os.open(order.lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + order.lock_wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline or stop.asked(_POLL_S):
                return None
        else:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{order.owner}\n".encode(), 0)
            return fd


def _boot(order: Order, server: subprocess.Popen[bytes], stop: StopRequests) -> bool:
    """Waits until the server answers, then shows where it is. -> False when it ended, gave no answer for `boot_s`, or we are to end."""
    deadline = time.monotonic() + order.boot_s
    while server.poll() is None and time.monotonic() < deadline and not stop.asked(_POLL_S):
        answer = _ping(order.socket)
        if answer.startswith(b"-LOADING"):
            deadline = time.monotonic() + order.boot_s
        if answer.startswith(b"+PONG"):
            unfinished = Path(order.url_file).with_suffix(".new")
            unfinished.write_text(order.url + "\n", encoding="utf-8")
            unfinished.replace(order.url_file)
            with suppress(OSError):  # who started it has gone meanwhile
                os.write(1, b"up\n")
            return True
    return False


def _ping(path: str) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
    except OSError:
        return b""


def _end(order: Order, server: subprocess.Popen[bytes]) -> None:
    Path(order.url_file).unlink(missing_ok=True)
    server.terminate()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
