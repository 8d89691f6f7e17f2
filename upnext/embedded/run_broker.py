"""The embedded broker of `upnext run`: a living one of the state directory, else one that ends with this process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from upnext import config
from upnext.core import secret_names
from upnext.embedded import keeper, server
from upnext.embedded.keeper import Order
from upnext.errors import BrokerUnavailableError

BOOT_S = 5.0
"""How long a server may give no answer at all. One that says LOADING may take its time."""
LOCK_WAIT_S = 10.0
"""How long the server of a process that was killed may take to write out its data."""
STOP_S = 15.0
_LOG_CAP_BYTES = 4096
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class RunBroker:
    """Where the queue is. `own`: this process, or the one that it runs for, started it, and it ends with that."""

    url: str
    own: bool


@contextmanager
def broker(name: str, env: Mapping[str, str], lifeline: int | None = None) -> Generator[RunBroker]:
    """The broker of the state directory of `name`, for the time of the block: a daemon's that lives, else an own one.

    With `lifeline`, this process runs for its parent, which holds the other end: the broker then stays until the parent ends.

    Raises BrokerInUseError where another process has its own one there, BrokerUnavailableError when none can be started.
    """
    owner = os.getpid() if lifeline is None else os.getppid()
    state_dir = config.private_dir(config.state_dir(name, None, env))
    url = config.broker_url_of(state_dir) or _restarted(state_dir)
    last = server.holder(state_dir)
    if url is not None and (last is None or last.program != server.RUN):
        yield RunBroker(url, own=False)
        return
    if url is not None and last is not None:
        if last.pid == owner:
            yield RunBroker(url, own=True)
            return
        if server.lives(last.pid):
            raise server.in_use(state_dir, name, last.pid)
        _end_orphan(url)
    if lifeline is not None:
        yield RunBroker(_start(state_dir, name, env, owner, lifeline)[0], own=True)
        return
    reading, writing = os.pipe()  # a process that is exec'd has neither end
    try:
        url, process = _start(state_dir, name, env, owner, reading)
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        yield RunBroker(url, own=True)
    finally:
        os.close(writing)
        _await_end(process)


def wait_until_gone(state_dir: Path, owner: int) -> None:
    """Return once the broker that ends with the process `owner` has ended, or STOP_S have passed."""
    deadline = time.monotonic() + STOP_S
    last = server.holder(state_dir)
    if last is None or last != server.Holder(owner, server.RUN):
        return
    while _is_locked(server.lock_path(state_dir)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _start(
    state_dir: Path, name: str, env: Mapping[str, str], owner: int, lifeline: int
) -> tuple[str, subprocess.Popen[bytes]]:
    """-> where it answers, and its keeper."""
    program = server.find_server()
    if program is None:
        raise BrokerUnavailableError(server.NO_SERVER)
    runtime = config.runtime_dir(env)
    socket_path = config.broker_socket_path(state_dir, runtime, name)
    if socket_path.parent == runtime:
        config.private_dir(runtime)
    url, log = server.url_of(socket_path), state_dir / "broker.log"
    order = Order(
        lifeline=lifeline,
        owner=f"{owner} {server.RUN}",
        lock=str(server.lock_path(state_dir)),
        lock_wait_s=LOCK_WAIT_S,
        url=url,
        url_file=str(state_dir / "broker.url"),
        socket=str(socket_path),
        log=str(log),
        boot_s=BOOT_S,
        server=[program, *server.arguments(state_dir, socket_path)],
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, json.dumps(asdict(order))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=secret_names.without(env),
        pass_fds=[lifeline],
        start_new_session=True,  # Ctrl-C is for the workers, which need it until their last job has ended
    )
    assert process.stdout is not None
    with process.stdout as output:
        is_up = output.readline() == b"up\n"
    if is_up:
        return url, process
    code = process.wait()
    if code == keeper.LOCKED:
        last = server.holder(state_dir)
        raise server.in_use(state_dir, name, None if last is None else last.pid)
    raise BrokerUnavailableError(f"the embedded broker did not start: {_last_line(log)} (all of it: {log})")


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the keeper leads a session of its own, with the server in it
        process.wait()


def _restarted(state_dir: Path) -> str | None:
    """The URL of a daemon's broker that is just being started again. None where there is no such daemon."""
    last = server.holder(state_dir)
    if last is None or last.program != server.DAEMON or not (state_dir / "broker.url").exists():
        return None
    if not server.lives(last.pid) or not _is_locked(state_dir / "lock"):
        return None
    deadline = time.monotonic() + LOCK_WAIT_S
    while (url := config.broker_url_of(state_dir)) is None:
        if time.monotonic() > deadline:
            raise BrokerUnavailableError(f"the broker of the daemon (pid {last.pid}) in {state_dir} does not answer")
        time.sleep(_POLL_S)
    return url


def _end_orphan(url: str) -> None:
    """Ask a server to end whose process of `upnext run` was killed: its keeper does that, if it was not killed, too."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(STOP_S)
        connection.connect(config.socket_of(url))
        connection.sendall(b"SHUTDOWN\r\n")
        connection.recv(64)


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_line(log: Path) -> str:
    try:
        lines = log.read_bytes()[-_LOG_CAP_BYTES:].decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip() if lines else "it gave no reason"
