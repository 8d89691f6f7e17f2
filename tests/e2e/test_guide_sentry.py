"""docs/guides/sentry-and-opentelemetry.md, against a server that writes down what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support import guides
from tests.support.daemon import Daemon
from tests.support.queue import Queue
from tests.support.waiting import wait_until
from upnext.core.outcome import JobStatus

PAGE = "sentry-and-opentelemetry.md"

EXPORTER = """
import json
import os
import urllib.request

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


class ToServer(SpanExporter):
    def export(self, spans):
        sent = json.dumps([{"name": span.name, "job": span.attributes.get("upnext.job.id")} for span in spans]).encode()
        urllib.request.urlopen(urllib.request.Request(os.environ["SPANS"], sent), timeout=20).close()
        return SpanExportResult.SUCCESS


def exporter():
    return ToServer()
"""
"""In place of the OTLP exporter, whose packages are not among the tests' needs."""


class Sink:
    """What arrived: events of Sentry, and spans."""

    def __init__(self, port: int) -> None:
        self.dsn = f"http://public@127.0.0.1:{port}/1"
        self.spans_url = f"http://127.0.0.1:{port}/spans"
        self.events: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] = []

    def receive(self, path: str, body: bytes) -> None:
        if path == "/spans":
            self.spans += json.loads(body)
            return
        lines = body.splitlines()[1:]  # an envelope: a header, then pairs of an item's header and the item
        for header, item in zip(lines[::2], lines[1::2], strict=False):
            if json.loads(header).get("type") == "event":
                self.events.append(json.loads(item))


@contextmanager
def sink() -> Iterator[Sink]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.receive(self.path, body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Sink(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_last_failures_reach_sentry_and_a_stop_sends_what_is_held_back() -> None:
    with sink() as found:
        environment = {"SENTRY_DSN": found.dsn, "SPANS": found.spans_url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        daemon = Daemon("", workers=1, env=environment)
        guides.write(PAGE, daemon.directory)
        (daemon.directory / "exporter.py").write_text(EXPORTER)
        with daemon, Queue(daemon) as queue:
            failed = queue.submit("charge", order_id="A1")
            assert queue.ended(failed).status is JobStatus.FAILED
            wait_until(lambda: found.events, 10, "the event to arrive")
            shipped = queue.submit("ship", order_id="A2")
            assert queue.ended(shipped).status is JobStatus.DONE
            assert found.spans == [], "they are held back"
            last = queue.submit("charge", order_id="A3")
            queue.ended(last)
            assert daemon.stop() == 0
            assert [one["extra"]["job_id"] for one in found.events] == [failed, last], "one for each, not for attempts"
            event = found.events[0]
            [error] = event["exception"]["values"]
            assert (error["type"], error["value"]) == ("ValueError", "no such order: A1")
            assert error["stacktrace"]["frames"][-1]["function"] == "charge"
            assert (event["level"], event["extra"]["task"], event["extra"]["attempt"]) == ("error", "charge", 2)
            assert any(
                "once more" in one["message"] or "again" in one["message"] for one in event["breadcrumbs"]["values"]
            )
            assert {(one["name"], one["job"]) for one in found.spans} >= {
                *(("run charge", job) for job in (failed, last)),
                ("run ship", shipped),
                ("queue ship", shipped),
            }
            assert [one["name"] for one in found.spans].count("run charge") == 4
