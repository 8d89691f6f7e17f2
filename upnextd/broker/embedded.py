"""The embedded broker: a Valkey (or Redis) server as a supervised child, on a Unix socket only, data in the state directory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from upnext.embedded import server as embedded
from upnext.embedded.server import find_server
from upnext.errors import BrokerUnavailableError
from upnextd.broker import trampoline
from upnextd.shared.kernel import Kernel
from upnextd.shared.logs import LineReader, Log
from upnextd.shared.process import ExitStatus

BOOT_S = 5.0
"""How long a server may give no answer at all. One that says LOADING may take its time."""
LOCK_WAIT_S = 10.0
"""How long the server of a daemon that was killed may take to write out its data."""
STOP_S = 10.0
KILL_S = 2.0
_POLL_S = 0.01
_RESTART_FIRST_S = 0.1
_RESTART_MOST_S = 5.0
_PROVEN_S = 10.0


class EmbeddedBroker:
    """Starts the server, keeps it running, stops it. `url` is where clients connect."""

    def __init__(
        self,
        state_dir: Path,
        socket_path: Path,
        env: Mapping[str, str],
        log: Log,
        on_change: Callable[[], None],
        kernel: Kernel,
    ) -> None:
        self.url = embedded.url_of(socket_path)
        self.pid: int | None = None
        self.up = False
        self.restarts = 0
        self.started_at = 0.0
        self.last_exit: ExitStatus | None = None
        self._state_dir = state_dir
        self._socket_path = socket_path
        self._url_path = state_dir / "broker.url"
        self._env = env
        self._log = log
        self._kernel = kernel
        self._on_change = on_change
        self._pidfd = -1
        self._output: LineReader | None = None
        self._stopping = False
        self._launched = False
        self._gone = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it answers. Raises BrokerUnavailableError with one clear line."""
        server = find_server()
        if server is None:
            raise BrokerUnavailableError(embedded.NO_SERVER)
        holder = embedded.run_holder(self._state_dir)
        if holder is not None:
            raise embedded.in_use(self._state_dir, self._state_dir.name, holder.pid)
        self._launch(server)
        await self._answering(BOOT_S)
        self._write_url()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(server))

    def to_state(self, fds: list[int]) -> dict[str, Any]:
        """As JSON, for an upgrade of the supervisor; `fds` gets its descriptors. Only while it is up."""
        assert self._output is not None
        fds += [self._pidfd, self._output.fd]
        return {
            "socket": str(self._socket_path),
            "pid": self.pid,
            "ends": [self._pidfd, self._output.fd],
            "restarts": self.restarts,
            "started_at": self.started_at,
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        state_dir: Path,
        env: Mapping[str, str],
        log: Log,
        on_change: Callable[[], None],
        kernel: Kernel,
    ) -> Self:
        """What `to_state` wrote, kept running from now on. Needs a running loop."""
        broker = cls(state_dir, Path(state["socket"]), env, log, on_change, kernel)
        broker.restarts = state["restarts"]
        broker._watch(state["pid"], *state["ends"])
        broker.started_at = state["started_at"]
        broker.up = True
        broker._keeper = asyncio.get_running_loop().create_task(broker._keep(find_server() or ""))
        return broker

    async def stop(self, within_s: float = STOP_S) -> None:
        """TERM, wait, KILL, and not wait long for what that doesn't end. Safe at any time."""
        self._stopping = True
        if self._launched:  # what is there otherwise is another process's
            self._url_path.unlink(missing_ok=True)
        if self.pid is not None:
            self._kernel.signal(self._pidfd, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._gone.wait(), within_s)
            except TimeoutError:
                self._log.caution(f"the broker did not end within {within_s:g} s: killed")
                self._kernel.signal(self._pidfd, signal.SIGKILL)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), KILL_S)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self, server: str) -> None:
        delay_s = _RESTART_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            await self._gone.wait()
            if self._stopping:
                return
            self._log.fault(f"the broker ended ({self.last_exit}); starting it again")
            delay_s = (
                _RESTART_FIRST_S if loop.time() - self.started_at > _PROVEN_S else min(delay_s * 2, _RESTART_MOST_S)
            )
            await asyncio.sleep(delay_s)
            self.restarts += 1
            try:
                self._launch(server)
                await self._answering(BOOT_S)
            except (OSError, BrokerUnavailableError) as error:
                self._log.fault(str(error))
                if self.pid is not None:
                    self._kernel.signal(self._pidfd, signal.SIGKILL)

    def _launch(self, server: str) -> None:
        self._gone.clear()
        argv = [
            sys.executable,
            "-I",
            "-S",
            trampoline.__file__,
            str(self._kernel.pid()),
            str(embedded.lock_path(self._state_dir)),
        ]
        argv += [str(LOCK_WAIT_S), server, *embedded.arguments(self._state_dir, self._socket_path)]
        out, into = self._kernel.pipe()
        null = self._kernel.null()
        try:
            self.pid = self._kernel.spawn(argv, self._env, {0: null, 1: into, 2: into})
        except OSError:
            os.close(out)
            self._gone.set()
            raise
        finally:
            os.close(into)
            os.close(null)
        self._watch(self.pid, self._kernel.open_pidfd(self.pid), out)

    def _watch(self, pid: int, pidfd: int, output_fd: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self._launched = True
        self._pidfd = pidfd
        self.started_at = loop.time()
        self._output = LineReader(output_fd, loop, lambda line: self._log.child_line("broker", pid, line), self._kernel)
        loop.add_reader(pidfd, self._ended, self._output)

    def _ended(self, output: LineReader) -> None:
        status = self._kernel.reap(self._pidfd)
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        output.drain()
        self.last_exit = status
        self.pid = None
        self.up = False
        self._gone.set()
        self._on_change()

    async def _answering(self, within_s: float) -> None:
        """Raises BrokerUnavailableError when it ended, or gave no answer at all for so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s + LOCK_WAIT_S
        while True:
            if self._gone.is_set():
                raise BrokerUnavailableError(
                    f"the embedded broker ended with {self.last_exit} at its start; its lines are in the log"
                )
            answer = await self._ping()
            if answer.startswith(b"+PONG"):
                self.up = True
                self._on_change()
                return
            if answer.startswith(b"-LOADING"):
                deadline = loop.time() + within_s
            if loop.time() > deadline:
                raise BrokerUnavailableError("the embedded broker does not answer")
            await asyncio.sleep(_POLL_S)

    async def _ping(self) -> bytes:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket_path))
        except OSError:
            return b""
        try:
            writer.write(b"PING\r\n")
            return await asyncio.wait_for(reader.readline(), 1.0)
        except (OSError, TimeoutError, ValueError):
            return b""
        finally:
            writer.close()

    def _write_url(self) -> None:
        unfinished = self._url_path.with_suffix(".new")
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(self.url + "\n")
        unfinished.replace(self._url_path)
