"""A real `upnextd` of a test: own directory, own socket, own state, and a check that it leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.processes import dies_with_us, kill_all, processes_in
from tests.support.waiting import given, wait_until

_LOG_TAIL = 8000
"""Characters of the log that a failure shows."""

BIN = Path(sys.executable).parent


class Daemon:
    """`upnextd start SERVICE` in a directory of its own.

    service: a path, or the source of a service file, which is then written to `directory/service.py`.
    redis_url: None starts the embedded broker.
    """

    def __init__(
        self,
        service: Path | str,
        *,
        redis_url: str | None = None,
        namespace: str | None = None,
        workers: int | None = 2,
        args: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        state: Path | None = None,
    ) -> None:
        # Not pytest's tmp_path: a Unix socket's path may have some 100 bytes only.
        self.directory = Path(tempfile.mkdtemp(prefix="upnextd-"))
        if isinstance(service, str):
            self.service = self.directory / "service.py"
            self.rewrite(service)
        else:
            self.service = service
        self.cwd = self.directory
        """Where it is started; may be changed before."""
        self.socket_path = self.directory / "ctl.sock"
        self.state = state or self.directory / "state"
        self.log_path = self.directory / "daemon.log"
        self.redis_url = redis_url
        self.namespace = namespace
        self._workers = workers
        self._args = args
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def rewrite(self, source: str) -> None:
        """Replaces the service file, as a deploy does."""
        new = self.service.with_suffix(".new")
        new.write_text(textwrap.dedent(source))
        new.replace(self.service)

    # life

    @property
    def command(self) -> list[str]:
        command = [str(BIN / "upnextd"), "start", str(self.service)]
        command += ["--socket", str(self.socket_path), "--state-dir", str(self.state)]
        if self._workers is not None:
            command += ["--workers", str(self._workers)]
        if self.redis_url is not None:
            command += ["--redis-url", self.redis_url]
        if self.namespace is not None:
            command += ["--namespace", self.namespace]
        return [*command, *self._args]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": "", "UPNEXT_TEST_DIRECTORY": self.directory.name, **self._env}

    def launch(self) -> Self:
        """Starts it and doesn't wait."""
        assert self._process is None or self._process.poll() is not None, "upnextd runs already"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us(self.command),
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def start(self, timeout_s: float = 30.0) -> Self:
        """Starts it and waits until its scheduler and as many workers as it should have are ready."""
        self.launch()
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = 30.0) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            if (code := self.exit_code) is not None:
                raise AssertionError(f"upnextd ended with {code} before it was ready:\n{self.log()}")
            with contextlib.suppress(OSError):
                status = self.status()
                serving = {c["role"] for c in status["children"] if c["state"] == "READY"}
                settled = all(c["state"] == "READY" for c in status["children"] if c["role"] == "scheduler")
                serves = settled and bool(serving & {"worker", "api"})
                if status["mode"] == "running" and serves and status["desired_workers"] <= status["ready_workers"]:
                    return status
            return None

        try:
            return wait_until(ready, timeout_s, "upnextd to be ready") or {}
        except AssertionError as error:
            error.add_note(self.log())
            raise

    @property
    def pid(self) -> int:
        assert self._process is not None, "upnextd was not started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None, "upnextd was not started"
        return self._process.poll()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None, "upnextd was not started"
        try:
            return self._process.wait(given(timeout_s))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"upnextd did not end within {given(timeout_s):g} s:\n{self.log()}") from None

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM and wait; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the supervisor alone."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.wait()

    def left(self) -> dict[int, str]:
        """Processes of this daemon that are alive now, itself among them."""
        return processes_in(self.directory)

    def assert_nothing_left(self, timeout_s: float = 5.0) -> None:
        wait_until(lambda: not self.left(), timeout_s, f"no process left of {self.directory.name}: {self.left()}")

    def close(self) -> None:
        """Ends whatever is left and removes the directory; checks nothing."""
        kill_all(self.left())
        if self._process is not None:
            self._process.kill()
            self._process.wait(given(10))
        wait_until(lambda: (kill_all(self.left()), not self.left())[1], 5, "the killed processes to be gone")
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        try:
            if error is not None:
                error.add_note(f"the daemon's log ends with:\n{self.log()[-_LOG_TAIL:]}")
            if kind is None:
                if self.exit_code is None:
                    self.stop()
                self.assert_nothing_left()
        finally:
            self.close()

    # looking in

    def rpc(self, method: str, **params: Any) -> Any:
        """One request on a connection of its own, byte by byte as the protocol says; its result. Raises RpcError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(given(10))
            connection.connect(str(self.socket_path))
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    reply = json.loads(line)
                    if reply.get("id") == 1:
                        if "error" in reply:
                            raise RpcError(reply["error"]["code"], reply["error"]["message"])
                        return reply["result"]
        raise ConnectionResetError("upnextd closed the connection")

    def status(self) -> dict[str, Any]:
        return self.rpc("status")

    def child(self, slot: str) -> dict[str, Any]:
        """The status of one slot, `worker-1`."""
        return next(child for child in self.status()["children"] if child["slot"] == slot)

    def worker_pids(self) -> dict[str, int]:
        """slot -> pid of the workers that are ready."""
        children = self.status()["children"]
        return {c["slot"]: c["pid"] for c in children if c["role"] == "worker" and c["state"] == "READY"}

    def ctl(self, *args: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """`upnext ctl ARGS --socket …`."""
        return self.cli("ctl", *args, "--socket", str(self.socket_path), timeout_s=timeout_s)

    def begin_ctl(self, *args: str) -> subprocess.Popen[str]:
        """`upnext ctl ARGS --socket …`, which goes on meanwhile."""
        command = [str(BIN / "upnext"), "ctl", *args, "--socket", str(self.socket_path)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def cli(self, *args: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """`upnext ARGS`, on the broker of this daemon."""
        command = [str(BIN / "upnext"), *args]
        environment = {**self.environment, "UPNEXT_REDIS_URL": self.broker_url}
        if self.namespace is not None:
            environment["UPNEXT_NAMESPACE"] = self.namespace
        return subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=given(timeout_s),
            check=False,
        )

    @property
    def broker_url(self) -> str:
        """The given URL, or where the embedded broker is."""
        return self.redis_url or (self.state / "broker.url").read_text().strip()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class RpcError(Exception):
    """The daemon answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
