"""The process behind `--metrics`: asks the daemon by its control socket and the queue by its broker, and serves it all as Prometheus text.

Exec'd by the supervisor (`upnextd.metrics.exporter`) with its order as JSON on stdin. When it can't listen it says why and ends with 78.
The daemon is asked at most every DAEMON_AGE_S, over one connection, however many scrape; the queue at most every QUEUE_AGE_S, for
counting delayed jobs takes the broker's time.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import orjson
import setproctitle
from prometheus_client import CollectorRegistry
from prometheus_client import exposition as _exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from upnext.control.client import ControlClient
from upnext.control.exits import ExitCode
from upnext.engine.client.sync_client import SyncQueueClient
from upnext.engine.views import tasks
from upnext.errors import ControlError, DaemonGoneError, QueueError, UpNextError
from upnext.listening import make_room
from upnextd.shared import api_meters, process
from upnextd.shared.meters import BOUNDS_S, Histogram

DAEMON_AGE_S = 1.0
QUEUE_AGE_S = 5.0
_OUTCOMES = ("done", "failed", "cancelled", "dead", "crashes")


def main() -> None:
    """Entry of the exec'd process."""
    order: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    process.die_with_parent(order["supervisor_pid"])
    setproctitle.setproctitle(f"upnextd {order['name']}: metrics")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DaemonCollector(order["socket"], order["name"]))
    registry.register(QueueCollector(order["redis_url"], order["namespace"]))
    try:
        server = listen(order["listen"])
    except OSError as error:
        _end(f"can't serve metrics on {order['listen']}: {error.strerror or error}")
    server.set_app(application(registry))
    server.serve_forever()


def _end(line: str) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    os._exit(ExitCode.CONFIG)


def application(registry: CollectorRegistry) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """A WSGI application: the metrics at /metrics, `ok` at /healthz, and nothing elsewhere."""
    # It is typed in part only.
    metrics: Callable[[dict[str, Any], Any], Iterable[bytes]] = cast("Any", _exposition).make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)
            case "/healthz":
                status, text = "200 OK", b"ok\n"
            case _:
                status, text = "404 Not Found", b"the metrics are at /metrics\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [text]

    return answer


class DaemonCollector(Collector):
    """What the supervisor knows: children, restarts, reloads, leadership, attempts of its own workers."""

    def __init__(self, socket_path: str, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._client: ControlClient | None = None
        self._lock = threading.Lock()
        self._known: list[Metric] = []
        self._read_at = -DAEMON_AGE_S

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= DAEMON_AGE_S:
                self._known = list(self._read())
                self._read_at = time.monotonic()
            return self._known

    def _ask(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """-> status and counters. Raises as ControlClient does; the next call connects anew."""
        client = self._client
        self._client = None
        try:
            if client is None:
                client = ControlClient(self._path, timeout_s=5.0)
            answers = client.call("status"), client.call("metrics")
        except BaseException:
            if client is not None:
                client.close()
            raise
        self._client = client
        return answers

    def _read(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("upnext_daemon_up", "1: the daemon answers", labels=["daemon"])
        kept = self._client is not None
        try:
            try:
                status, counted = self._ask()
            except DaemonGoneError:
                if not kept:
                    raise
                status, counted = self._ask()  # who is silent for long may be hung up on
        except (UpNextError, ControlError, OSError):
            up.add_metric([self._name], 0)
            yield up
            return
        up.add_metric([self._name], 1)
        yield up
        yield from self._of_status(status)
        yield from self._of_counters(counted)

    def _of_status(self, status: dict[str, Any]) -> Iterator[Metric]:
        name = self._name
        children = GaugeMetricFamily(
            "upnext_children", "Children by role and state", labels=["daemon", "role", "state"]
        )
        counted: dict[tuple[str, str], int] = {}
        memory = GaugeMetricFamily(
            "upnext_child_memory_bytes", "Memory, shared pages divided among their users", labels=["daemon", "slot"]
        )
        for child in status["children"]:
            key = (child["role"], child["state"])
            counted[key] = counted.get(key, 0) + 1
            if child["pss_bytes"]:
                memory.add_metric([name, child["slot"]], child["pss_bytes"])
        for (role, state), count in sorted(counted.items()):
            children.add_metric([name, role, state], count)
        yield children
        yield memory
        running = sum(child["in_flight_count"] for child in status["children"])
        gauges = (
            ("upnext_workers_ready", "Workers that serve", status["ready_workers"]),
            ("upnext_workers_desired", "Workers that there should be", status["desired_workers"]),
            ("upnext_jobs_running", "Jobs that run in this daemon's workers", running),
            ("upnext_generation", "Generation of the service's code", status["generation"]),
            ("upnext_leader", "1: this daemon's scheduler leads", int(status["scheduler"]["leader"])),
            ("upnext_broker_connected", "1: the scheduler reaches the broker", int(status["broker"]["connected"])),
        )
        for metric, text, value in gauges:
            family = GaugeMetricFamily(metric, text, labels=["daemon"])
            family.add_metric([name], value)
            yield family

    def _of_counters(self, counted: dict[str, Any]) -> Iterator[Metric]:
        name = self._name
        restarts = CounterMetricFamily(
            "upnext_restarts", "Children that were replaced, by what ended them", labels=["daemon", "role", "cause"]
        )
        for row in counted["restarts"]:
            restarts.add_metric([name, row["role"], row["cause"]], row["count"])
        yield restarts
        reloads = CounterMetricFamily("upnext_reloads", "Reloads by outcome", labels=["daemon", "outcome"])
        for outcome, count in counted["reloads"].items():
            reloads.add_metric([name, outcome], count)
        yield reloads
        attempts = CounterMetricFamily(
            "upnext_attempts", "Attempts that ended in this daemon's workers", labels=["daemon", "task", "outcome"]
        )
        durations = HistogramMetricFamily(
            "upnext_attempt_duration_seconds", "How long attempts took", labels=["daemon", "task"]
        )
        lateness = HistogramMetricFamily(
            "upnext_lateness_seconds", "From when a job could have started to when it did", labels=["daemon", "task"]
        )
        for task, meter in counted["tasks"].items():
            attempts.add_metric([name, task, "ok"], meter["ok"])
            attempts.add_metric([name, task, "failed"], meter["failed"])
            durations.add_metric([name, task], cumulative(meter["durations"]["counts"]), meter["durations"]["sum_s"])
            lateness.add_metric([name, task], cumulative(meter["lateness"]["counts"]), meter["lateness"]["sum_s"])
        yield attempts
        yield durations
        yield lateness
        yield from self._of_apis(counted["apis"])

    def _of_apis(self, counted: dict[str, Any]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "upnext_api_requests",
            "Requests to this daemon's Apis, by class of status",
            labels=["daemon", "api", "route", "status"],
        )
        durations = HistogramMetricFamily(
            "upnext_api_request_duration_seconds",
            "From a request to the end of its answer",
            labels=["daemon", "api", "route"],
        )
        by_route: dict[tuple[str, str], Histogram] = {}
        for row, meter in counted.items():
            api, route, status = api_meters.names(row)
            requests.add_metric([self._name, api, route, status], meter["ok"])
            by_route.setdefault((api, route), Histogram()).add(Histogram(**meter["durations"]))
        for (api, route), one in by_route.items():
            durations.add_metric([self._name, api, route], cumulative(one.counts), one.sum_s)
        yield requests
        yield durations


class QueueCollector(Collector):
    """What the broker knows of the namespace: the same figures on every host that works on it."""

    def __init__(self, url: str, namespace: str) -> None:
        self._broker = SyncQueueClient(url, namespace, name="upnext-metrics")
        self._namespace = namespace
        self._lock = threading.Lock()
        self._known: list[Metric] = []
        self._read_at = -QUEUE_AGE_S

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= QUEUE_AGE_S:
                self._known = list(self._read())
                self._read_at = time.monotonic()
            return self._known

    def _read(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("upnext_queue_up", "1: the broker answers", labels=["namespace"])
        try:
            now_ms = time.time_ns() // 1_000_000
            found = tasks.tasks(self._broker, self._broker.keys, now_ms)
            oldest = tasks.oldest_queued_ms(self._broker, self._broker.keys, [one.name for one in found if one.queued])
            ends = {facts.name: facts.stats for facts in tasks.known(self._broker, self._broker.keys)}
        except QueueError:
            up.add_metric([self._namespace], 0)
            yield up
            return
        up.add_metric([self._namespace], 1)
        yield up
        depth = GaugeMetricFamily("upnext_queue_depth", "Jobs by task and state", labels=["namespace", "task", "state"])
        waits = GaugeMetricFamily(
            "upnext_queue_oldest_seconds", "Age of the oldest queued job, 0 for none", labels=["namespace", "task"]
        )
        paused = GaugeMetricFamily("upnext_task_paused", "1: no worker fetches it", labels=["namespace", "task"])
        jobs = CounterMetricFamily("upnext_jobs", "Jobs by how they ended", labels=["namespace", "task", "outcome"])
        for task in found:
            for state in ("queued", "running", "delayed", "dead"):
                depth.add_metric([self._namespace, task.name, state], getattr(task, state))
            waited_ms = now_ms - oldest.get(task.name, now_ms)
            waits.add_metric([self._namespace, task.name], max(0, waited_ms) / 1000)
            paused.add_metric([self._namespace, task.name], int(task.paused))
            stats = ends.get(task.name, {})
            for outcome in _OUTCOMES:
                jobs.add_metric([self._namespace, task.name, outcome], stats.get(outcome, 0))
        yield depth
        yield waits
        yield paused
        yield jobs


def cumulative(counts: list[int]) -> list[tuple[str, float]]:
    """Counts per bucket -> (upper bound, jobs up to it), as Prometheus wants them."""
    reached = 0
    out: list[tuple[str, float]] = []
    for bound, count in zip([*(str(bound) for bound in BOUNDS_S), "+Inf"], counts, strict=True):
        reached += count
        out.append((bound, reached))
    return out


class _Handler(WSGIRequestHandler):
    timeout = 10
    """A client that connects and sends nothing is disconnected."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class calls it by
        """Scrapes are no news."""

    def address_string(self) -> str:
        return "local" if isinstance(self.client_address, str) else super().address_string()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """A client that hung up or went silent is no news; any other failure is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            sys.stderr.write(f"a scrape failed: {type(error).__name__}: {error}\n")


class _Server6(_Server):
    address_family = socket.AF_INET6


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        os.fchmod(self.socket.fileno(), 0o600)
        path = cast("str", self.server_address)
        make_room(path)
        self.socket.bind(path)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = self.socket.accept()
        return connection, ("local", 0)


def listen(where: str) -> WSGIServer:
    """`HOST:PORT`, `[V6]:PORT`, or a Unix socket's path. Raises OSError."""
    if where.startswith("/"):
        return _UnixServer(cast("Any", where), _Handler)
    host, _, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    server = _Server6 if ":" in host else _Server
    return server((host, int(port)), _Handler)
