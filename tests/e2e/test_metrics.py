"""`--metrics`: Prometheus text, from a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.servers import free_port
from tests.support.waiting import wait_until

SERVICE = """
    import asyncio, os
    import upnext

    worker = upnext.Worker("jobs", concurrency=4)

    @worker.task
    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @worker.task
    async def fail() -> None:
        raise ValueError("no")

    @worker.task(max_crashes=1)
    async def leave() -> None:
        os._exit(3)
"""

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of this name that have these labels."""
    return sum(
        number for (found, its), number in samples.items() if found == name and labels.items() <= dict(its).items()
    )


def scraped(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        return parsed(answer.read().decode())


def asked(port: int, path: str) -> tuple[int, bytes]:
    """Status and body."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("GET", path)
    answer = client.getresponse()
    return answer.status, answer.read()


def up(port: int) -> bool:
    try:
        scraped(port)
    except OSError:
        return False
    return True


def upgraded(daemon: Daemon, former: int) -> bool:
    """While it execs itself, its socket listens and nobody answers."""
    try:
        return daemon.child("metrics")["pid"] not in (None, former)
    except (OSError, StopIteration):
        return False


def test_everything_is_served() -> None:
    port = free_port()
    with Daemon(SERVICE, workers=2, args=("--metrics", f"127.0.0.1:{port}")) as daemon, Queue(daemon) as queue:
        for job_id in (*queue.submit_many("nap", [{"seconds": 0.1}] * 5), queue.submit("fail")):
            queue.ended(job_id)
        queue.ended(queue.submit("leave"))
        wait_until(lambda: up(port), 15, "metrics to be served")
        wait_until(lambda: value(scraped(port), "upnext_children", role="worker", state="READY") == 2, 10)
        wait_until(lambda: value(scraped(port), "upnext_jobs_total", task="nap", outcome="done") == 5, 10)
        wait_until(lambda: value(scraped(port), "upnext_attempts_total", task="nap", outcome="ok") == 5, 10)
        wait_until(lambda: value(scraped(port), "upnext_attempts_total", task="fail", outcome="failed") == 1, 10)
        samples = scraped(port)
        reported = {name for name, _ in samples}
        assert value(samples, "upnext_daemon_up", daemon="service") == 1
        assert value(samples, "upnext_queue_up") == 1
        assert value(samples, "upnext_jobs_total", task="fail", outcome="failed") == 1
        assert value(samples, "upnext_jobs_total", task="leave", outcome="dead") == 1
        assert value(samples, "upnext_attempt_duration_seconds_count", task="nap") == 5
        # A loop that counts in ms may wake up to one early.
        assert 0.45 <= value(samples, "upnext_attempt_duration_seconds_sum", task="nap") < 50, "seconds"
        assert value(samples, "upnext_attempt_duration_seconds_bucket", task="nap", le="0.05") == 0
        assert value(samples, "upnext_lateness_seconds_count", task="nap") == 5
        assert value(samples, "upnext_queue_depth", task="nap", state="queued") == 0
        # A machine that is busy may have replaced a worker at its start, too.
        restarts = [child["restarts"] for child in daemon.status()["children"] if child["role"] == "worker"]
        assert value(samples, "upnext_restarts_total", role="worker") == sum(restarts)
        assert value(samples, "upnext_restarts_total", role="worker", cause="exit") >= 1
        wait_until(lambda: value(scraped(port), "upnext_leader") == 1, 10)
        assert value(samples, "upnext_workers_ready") == 2
        assert value(samples, "upnext_generation") == 1
        assert {
            "upnext_reloads_total",
            "upnext_child_memory_bytes",
            "upnext_jobs_running",
            "upnext_task_paused",
        } <= reported
        for file in ("alerts.yaml", "grafana.json", "../kubernetes/keda/worker.yaml"):
            wanted = set(re.findall(r"\bupnext_\w+", (MONITORING / file).read_text()))
            assert wanted - reported == set(), f"{file} asks for what is not exported"

        child = daemon.child("metrics")
        assert child["state"] == "READY"
        assert child["pid"] != daemon.pid
        os.kill(child["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.child("metrics")["pid"] not in (None, child["pid"]), 10)
        wait_until(lambda: up(port), 10, "metrics to be served again")
        assert daemon.status()["ready_workers"] == 2

        former = daemon.child("metrics")["pid"]
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: upgraded(daemon, former), 20, "the upgraded daemon to have a metrics process of its own")
        wait_until(lambda: up(port), 10, "metrics to be served after an upgrade")
        after = scraped(port)
        for (name, labels), before in samples.items():
            if name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert after.get((name, labels), 0.0) >= before, f"{name} {dict(labels)} went back"
        assert value(after, "upnext_attempts_total", task="nap", outcome="ok") == 5
        assert value(after, "upnext_attempts_total", task="leave", outcome="failed") == 0

        os.kill(daemon.child("metrics")["pid"], signal.SIGSTOP)
        assert daemon.status()["ready_workers"] == 2, "a scrape that hangs is nobody else's business"


def test_however_many_scrape_the_daemon_has_one_client() -> None:
    port = free_port()
    with Daemon(SERVICE, workers=1, args=("--metrics", f"127.0.0.1:{port}")) as daemon:
        wait_until(lambda: up(port), 20, "the metrics")
        stop = threading.Event()
        answers: list[float] = []

        def scrape() -> None:
            while not stop.is_set():
                answers.append(value(scraped(port), "upnext_daemon_up"))

        with ThreadPoolExecutor(30) as pool:
            scrapers = [pool.submit(scrape) for _ in range(30)]
            try:
                wait_until(lambda: len(answers) > 100, 60, "scrapes")
                assert daemon.ctl("status").returncode == 0
            finally:
                stop.set()
            for scraper in scrapers:
                scraper.result(60)
        assert set(answers) == {1.0}


def test_only_the_metrics_and_a_probe_are_served_and_clients_that_hang_up_leave_no_line() -> None:
    port = free_port()
    with Daemon(SERVICE, workers=1, args=("--metrics", f"127.0.0.1:{port}")) as daemon:
        wait_until(lambda: up(port), 20, "the metrics")
        answers = {
            path: asked(port, path) for path in ("/healthz", "/", "/metrics/x", "/favicon.ico", "/admin?/metrics")
        }
        assert answers.pop("/healthz") == (200, b"ok\n")
        assert answers == dict.fromkeys(answers, (404, b"the metrics are at /metrics\n"))
        before = daemon.log()
        for request in (b"GET /metrics HTTP/1.0\r\n\r\n", b"GET /metrics HTTP/1.0\r\n", b"") * 17:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(request)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no end
        assert asked(port, "/healthz") == (200, b"ok\n")
        # What its threads had to say about the resets comes before the end of the process.
        os.kill(daemon.child("metrics")["pid"], signal.SIGTERM)
        wait_until(lambda: "the metrics process ended" in daemon.log(), 20)
        lines = daemon.log().removeprefix(before).splitlines()
        assert [line for line in lines if " metrics[" in line] == []


def test_a_unix_socket() -> None:
    daemon = Daemon(SERVICE, workers=1)
    path = daemon.directory / "metrics.sock"
    daemon._args = ("--metrics", str(path))
    with daemon:
        wait_until(path.exists, 15)
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            wait_until(lambda: connection.connect_ex(str(path)) == 0, 10, "it to listen")
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        assert value(parsed(body.decode()), "upnext_daemon_up") == 1


def test_another_program_s_socket_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        with Daemon(SERVICE, workers=1, args=("--metrics", str(path))) as daemon:
            wait_until(lambda: f"can't serve metrics on {path}: another process listens there" in daemon.log(), 20)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


def test_a_taken_port_costs_the_metrics_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Daemon(SERVICE, workers=1, args=("--metrics", address)) as daemon:
            wait_until(lambda: f"can't serve metrics on {address}: Address already in use" in daemon.log(), 15)
            assert daemon.status()["ready_workers"] == 1


def test_the_supervisor_does_not_import_it() -> None:
    code = "import sys, upnextd.main; print('prometheus_client' in sys.modules, 'upnextd.metrics.exporter_process' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["False", "False"]
