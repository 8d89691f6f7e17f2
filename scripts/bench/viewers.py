"""Measure a dashboard under viewers: resident memory over time and its slope, CPU time, server time of the broker.

A broker of its own holds 100 tasks with queued jobs, an hour by the minute, dead letters in groups, and the reports of 50 daemons, of
which each has 8 slots with 20 named jobs. The viewers open the large pages in turn, each a page every 2 s, without ETags: every page is
rendered. Nothing runs; the reports are written again while it lasts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.integration.inspect.bench import Bench, task
from tests.support.processes import dies_with_us
from tests.support.servers import Server, free_port
from upnext.core import reports, series
from upnext.core.series import Times
from upnext.engine.calls import daemons
from upnext.engine.calls import series as over_time
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import series as views

TASKS = 100
QUEUED_A_TASK = 100
DEAD = 1_000
DAEMONS, SLOTS, JOBS = 50, 8, 20
NAMESPACE = "viewers"
EVERY_S = 2.0
"""A viewer opens a page so often."""
SAMPLE_S = 5.0
WARM_S = 60.0
"""The slope is that of what comes after."""
MIB = 1 << 20
PAGES = ("/", "/tasks", "/hosts", "/tasks/task-7", "/dead", "/jobs", "/jobs?state=dead", "/workers", "/activity")


class Fleet:
    """Daemons that only report."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def report(self) -> None:
        for number in range(DAEMONS):
            rows = reports.rows(self._status(number), f"web-{number}", "token")
            self._bench.broker.run(daemons.report(self._bench.keys, f"daemon-{number}", rows, 600))

    def _status(self, number: int) -> dict[str, object]:
        running = [
            {"job_id": f"task-{job}:n176376240{number:04}-{job}", "task": f"task-{job}", "age_s": time.time() % 60}
            for job in range(JOBS)
        ]
        children = [
            {
                **reports.blank_slot(f"worker-{slot}", "worker", "READY", pid=4000 + slot, generation=1),
                "uptime_s": time.time() % 10_000,
                "in_flight": running,
                "in_flight_count": JOBS,
                "rss_bytes": 60 * MIB,
            }
            for slot in range(SLOTS)
        ]
        about = {"pid": 7, "name": "shop", "version": "1.0", "mode": "running", "generation": 1}
        return {**about, "desired_workers": SLOTS, "ready_workers": SLOTS, "children": children}


def fill(bench: Bench) -> None:
    """Everything that pages are made of."""
    bench.register(*(task(f"task-{number}") for number in range(TASKS)), lease_ms=86_400_000)
    for number in range(TASKS):
        bench.dead(f"task-{number}", DEAD // TASKS)
        for _ in range(QUEUED_A_TASK):
            bench.submit(f"task-{number}")
    now_ms = time.time_ns() // 1_000_000
    times = Times()
    for wait_s, run_s in itertools.product((0.001, 0.02, 0.5), (0.01, 0.1, 3.0)):
        times.note(wait_s, run_s, 10)
    for step in series.POINTS:
        for moment in views.moments(now_ms, step, series.POINTS[step]):
            cursor = ""
            while cursor != "0":
                cursor = bench.broker.run(over_time.sample(bench.keys, bench.epoch, moment, step, cursor or "0"))
    for minute in range(180):
        noted = {f"task-{number}": times for number in range(TASKS)}
        bench.broker.run(over_time.note_times(bench.keys, now_ms - minute * 60_000, noted))


class Viewers:
    """Threads that open pages until they are stopped."""

    def __init__(self, listen: str, token: str, count: int) -> None:
        self.took_s: list[float] = []
        self.errors = 0
        self._listen, self._token = listen, token
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._view, args=(number,)) for number in range(count)]

    def start(self) -> None:
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        self._stopped.set()
        for one in self._threads:
            one.join()

    def _view(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._stopped.wait(EVERY_S if turn > number else EVERY_S * number / len(self._threads)):
                return
            began = time.monotonic()
            request = urllib.request.Request(f"http://{self._listen}{PAGES[turn % len(PAGES)]}")
            request.add_header("Authorization", f"Bearer {self._token}")
            request.add_header("Accept", "text/html")
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
            except OSError:
                self.errors += 1
            self.took_s.append(time.monotonic() - began)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def slope_a_minute(samples: Sequence[tuple[float, int]]) -> float:
    """MiB a minute, by least squares."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([at / 60 for at, _ in samples], [size / MIB for _, size in samples]).slope


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Raises RuntimeError when the process ends before it listens."""
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the dashboard ended with {process.returncode}")


def measure(server: Server, folder: Path, viewers: int, seconds: float) -> None:
    port = free_port()
    listen = f"127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "upnext"), "dashboard", "--listen", listen]
    command += ["--state-dir", str(folder), "--redis-url", server.tcp_url, "--namespace", NAMESPACE]
    broker = SyncQueueClient(server.tcp_url, NAMESPACE)
    bench = Bench(broker)
    fill(bench)
    fleet = Fleet(bench)
    fleet.report()
    process = subprocess.Popen(dies_with_us(command), cwd=folder)
    try:
        await_port(port, process)
        samples = [(0.0, rss_bytes(process.pid))]
        print(f"   start  {samples[0][1] / MIB:6.1f} MiB")
        audience = Viewers(listen, (folder / "dashboard.token").read_text().strip(), viewers)
        began, cpu_before = time.monotonic(), cpu_s(process.pid)
        audience.start()
        try:
            while (now := time.monotonic() - began) < seconds:
                time.sleep(min(SAMPLE_S, seconds - now))
                fleet.report()
                samples.append((time.monotonic() - began, rss_bytes(process.pid)))
                if len(samples) % 6 == 1:
                    print(f"{samples[-1][0]:6.0f} s  {samples[-1][1] / MIB:6.1f} MiB", flush=True)
        finally:
            audience.stop()
        took = sorted(audience.took_s)
        print(f"most         {max(size for _, size in samples) / MIB:6.1f} MiB")
        print(
            f"slope        {slope_a_minute([one for one in samples if one[0] > WARM_S]):6.3f} MiB a minute, after {WARM_S:.0f} s"
        )
        print(f"CPU time     {(cpu_s(process.pid) - cpu_before) / (time.monotonic() - began) * 100:6.1f} %")
        print(
            f"pages        {len(took):6} with {audience.errors} errors; p95 {took[int(len(took) * 0.95)] * 1000:.0f} ms"
        )
    finally:
        process.terminate()
        process.wait()
        broker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (%(default)s)")
    options = parser.parse_args()
    with Server() as server, tempfile.TemporaryDirectory(prefix="upnext-viewers-") as folder:
        measure(server, Path(folder), options.viewers, options.seconds)


if __name__ == "__main__":
    main()
