"""What every measurement stands on: a private broker without persistence, an upnextd, a producer, and the file of the jobs' records.

The broker listens on a free loopback port; the daemon has a directory of its own. Leaving the rig ends all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis
from ticks import RECORD

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.support.daemon import Daemon  # noqa: E402 - the tree is no installed package
from tests.support.processes import dies_with_us  # noqa: E402
from tests.support.servers import NoServerError, Server, binary  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402
from upnext.control.client import ControlClient  # noqa: E402

Values = dict[str, float]
MIB = 1024 * 1024
STALL_S = 20.0


class MeasureError(Exception):
    """The system did not do what was to be measured."""


class Rig:
    """`service`: a file of this folder. `embedded`: the daemon brings its own broker, and there is no producer."""

    def __init__(
        self, service: str, *, workers: int = 1, embedded: bool = False, server: str = "", **settings: int
    ) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="upnext-bench-", dir=memory))
        self.ticks = self.folder / "ticks"
        self.ticks.touch()
        self._service = service
        self._server = None if embedded else Server(server or default_server())
        self._env = {
            "BENCH_TICKS": str(self.ticks),
            **{f"BENCH_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._producer: subprocess.Popen[str] | None = None
        self._stats: redis.Redis | None = None
        self.daemon = Daemon(
            HERE / f"{service}.py",
            redis_url=None if self._server is None else self._server.tcp_url,
            workers=workers,
            args=("--name", "bench"),
            env=self._env,
        )
        self.workers = workers

    def __enter__(self) -> Self:
        if self._server is not None:
            self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._producer is not None:
            self._producer.kill()
            self._producer.communicate()
        self.daemon.close()
        if self._stats is not None:
            self._stats.close()
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the parts --

    def start(self) -> None:
        """The daemon, until all its workers are ready."""
        self.daemon.start()

    def launch(self) -> LaunchedDaemon:
        """The daemon as an init system starts it, without waiting: for measuring how long it takes."""
        return LaunchedDaemon(self.daemon, self.folder)

    def produce(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One order to the producer, which is started when it is first needed; its answer."""
        if self._producer is None:
            assert self._server is not None
            self._producer = subprocess.Popen(
                dies_with_us([sys.executable, str(HERE / "producer.py"), self._service]),
                env={**os.environ, **self._env, "UPNEXT_REDIS_URL": self._server.tcp_url},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._producer.stdin is not None
        assert self._producer.stdout is not None
        self._producer.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._producer.stdin.flush()
        answer = self._producer.stdout.readline()
        if not answer:
            raise MeasureError(f"the producer ended at {op}")
        return json.loads(answer)

    def pause(self) -> None:
        self._operate("pause")

    def resume(self) -> None:
        self._operate("resume")

    def _operate(self, method: str) -> None:
        with ControlClient(self.daemon.socket_path) as client:
            ended = client.wait(client.call(method)["op_id"], timeout_s=30)
        if not ended.ok:
            raise MeasureError(f"{method}: {ended.text}")

    # -- the broker's counters --

    def requests(self) -> tuple[int, int]:
        """-> reads from clients' sockets, commands. The second question, and every later one, counts itself as one of each."""
        assert self._server is not None
        if self._stats is None:
            self._stats = self._server.client()
        stats: Any = self._stats.info("stats")
        return stats["total_reads_processed"], stats["total_commands_processed"]

    # -- records --

    def count(self) -> int:
        return self.ticks.stat().st_size // RECORD.size

    def records(self, start: int = 0) -> list[tuple[float, float, float]]:
        """(pid, time, carried) of every job since record `start`."""
        with self.ticks.open("rb") as file:
            file.seek(start * RECORD.size)
            return [(pid, at, carried) for pid, at, carried in RECORD.iter_unpack(file.read())]

    def wait_for(self, count: int, *, stall_s: float = STALL_S, poll_s: float = 0.01) -> None:
        """Until `count` jobs have started. Raises MeasureError when none started for a while."""
        seen, progress = 0, time.monotonic()
        while (now := self.count()) < count:
            if now > seen:
                seen, progress = now, time.monotonic()
            elif time.monotonic() - progress > stall_s:
                raise MeasureError(
                    f"{now} of {count} jobs started, then none for {stall_s:g} s; the daemon's log ends\n{self.daemon.log()[-2000:]}"
                )
            time.sleep(poll_s)

    # -- processes --

    def pids(self) -> list[int]:
        """All processes of the daemon, itself first."""
        return [self.daemon.pid, *(pid for pid in sorted(self.daemon.left()) if pid != self.daemon.pid)]

    def all_ready(self) -> None:
        """Until every worker is ready and none has a job."""

        def ready() -> bool:
            children = self.daemon.status()["children"]
            idle = [
                child
                for child in children
                if child["role"] == "worker" and child["state"] == "READY" and not child["in_flight"]
            ]
            return len(idle) == self.workers

        wait_until(ready, 30, "all workers to be ready and idle")


class LaunchedDaemon:
    """A daemon on its way up, and the time that it takes; READY=1 comes through NOTIFY_SOCKET."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        path = folder / "notify"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(path))
        with daemon.log_path.open("ab") as log:
            self.launched_at = time.time()
            self._process = subprocess.Popen(
                daemon.command,
                cwd=daemon.directory,
                env={**daemon.environment, "NOTIFY_SOCKET": str(path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ready_s(self, timeout_s: float = 30.0) -> float:
        """Seconds from the launch to READY."""
        self._listener.settimeout(timeout_s)
        try:
            while b"READY=1" not in self._listener.recv(4096):
                pass
        except TimeoutError:
            raise MeasureError(f"not ready within {timeout_s:g} s") from None
        return time.time() - self.launched_at


class ReadyWatch:
    """When children became ready, as the control socket tells it."""

    def __init__(self, path: Path) -> None:
        self._client = ControlClient(path)
        self._ready: list[float] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for event in self._client.events():
                if event.get("kind") == "child_ready":
                    self._ready.append(time.time())

    def after(self, at: float) -> float:
        """The first after `at`, which is waited for."""
        return wait_until(lambda: next((ready for ready in self._ready if ready > at), 0.0), 30, "a child to be ready")


def default_server() -> str:
    """The kind of broker to measure with: redis-server where there is one."""
    try:
        binary("redis")
    except NoServerError:
        return "valkey"
    return "redis"


# -- figures --


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(name: str, values: Sequence[float]) -> Values:
    return {
        f"{name}.p50": percentile(values, 0.5),
        f"{name}.p99": percentile(values, 0.99),
        f"{name}.min": min(values),
        f"{name}.max": max(values),
    }


def steady_rate(times: Sequence[float], low: float = 0.1, high: float = 0.9) -> float:
    """Jobs/s between two shares of the jobs: without the start and the end."""
    first, last = int(low * len(times)), int(high * (len(times) - 1))
    ordered = sorted(times)
    return (last - first) / (ordered[last] - ordered[first])


def memory_mib(pids: Sequence[int]) -> dict[str, float]:
    """Sums of "rss", "pss", "uss" (what a process has for itself)."""
    sums = {"rss": 0.0, "pss": 0.0, "uss": 0.0}
    columns = {"Rss": "rss", "Pss": "pss", "Private_Clean": "uss", "Private_Dirty": "uss", "Private_Hugetlb": "uss"}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in columns:
                sums[columns[name]] += int(rest.split()[0]) / 1024
    return sums


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of all threads, to the nanosecond: an idle daemon takes less than a clock tick a second."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def others_cpu_percent(seconds: float = 1.0) -> float:
    """How busy the machine is while we do nothing, 100 for each core."""

    def busy() -> int:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4]

    before = busy()
    time.sleep(seconds)
    return round(100 * (busy() - before) / os.sysconf("SC_CLK_TCK") / seconds, 1)


class Deaths:
    """Waits for processes to end, by pidfd: exact, and zombies count as ended."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pidfds = [os.pidfd_open(pid) for pid in pids]

    def wait_all(self, timeout_s: float = 20.0) -> float:
        """The time at which the last one was gone."""
        poll = select.poll()
        for pidfd in self._pidfds:
            poll.register(pidfd, select.POLLIN)
        left = set(self._pidfds)
        deadline = time.monotonic() + timeout_s
        try:
            while left:
                if time.monotonic() > deadline:
                    raise MeasureError(f"{len(left)} processes are left after {timeout_s:g} s")
                for pidfd, _ in poll.poll(100):
                    poll.unregister(pidfd)
                    left.discard(pidfd)
            return time.time()
        finally:
            for pidfd in self._pidfds:
                os.close(pidfd)
