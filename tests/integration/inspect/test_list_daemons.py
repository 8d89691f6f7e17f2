"""list_daemons: what the daemons of all hosts report."""

from __future__ import annotations

import threading
import time

from tests.integration.inspect.bench import CONSUMER, Bench, task
from tests.integration.inspect.reporting import listed, report
from upnext.engine.calls import daemons as calls
from upnext.engine.views import daemons


def test_a_daemon_without_a_report_is_known_by_its_consumers(bench: Bench) -> None:
    bench.register(task("ship"))
    report(bench, "other", "worker-1")
    found = listed(bench)
    assert (found["d1"].state, found["d1"].report, found["d1"].seen_ms) == ("alive", None, None)
    assert [(slot["pid"], slot["state"]) for slot in found["d1"].slots] == [(4711, "alive")]
    report(bench, "d1", "worker-1")
    assert [one.consumer for one in listed(bench)["d1"].consumers] == [CONSUMER]
    assert listed(bench)["d1"].state == "running"


def test_one_whose_leases_have_ended_is_gone(bench: Bench) -> None:
    bench.register(task("ship"))
    report(bench, "d1", "worker-1")
    bench.broker.command("ZREM", bench.keys.leases, CONSUMER)
    assert listed(bench)["d1"].state == "running"  # it reported just now
    bench.broker.command("HSET", bench.keys.daemon("d1"), "seen_ms", 1)
    assert listed(bench)["d1"].state == "gone"


def test_rows_that_cannot_be_read_are_left_out(bench: Bench) -> None:
    report(bench, "good", "worker-1")
    for name, raw in (("text", b"no json"), ("list", b"[1]")):
        report(bench, name, "worker-1")
        bench.broker.command("HSET", bench.keys.daemon(name), "daemon", raw)
    assert list(listed(bench)) == ["good"]


def test_many_come_in_parts_each_once(bench: Bench) -> None:
    names = [f"d{number:03}" for number in range(250)]
    for name in names:
        report(bench, name, "worker-1")
    after, parts, seen = "", 0, list[str]()
    while True:
        after, _, page = bench.broker.run(calls.list_daemons(bench.keys, after))
        parts += 1
        seen += [one.daemon for one in page]
        if not after:
            break
    assert (seen, parts) == (names, 3)


def test_long_reports_come_in_more_parts(bench: Bench) -> None:
    for number in range(20):
        report(bench, f"d{number:02}", *(f"worker-{slot}" for slot in range(100)), jobs=20)
    after, _, page = bench.broker.run(calls.list_daemons(bench.keys, ""))
    assert len(page) < 20
    assert after == page[-1].daemon
    assert len(listed(bench)) == 20


def test_a_daemon_that_is_just_born_gets_time_to_report(bench: Bench) -> None:
    bench.register(task("ship"))
    bench.broker.command(
        "HSET", bench.keys.consumers, CONSUMER, b'{"daemon": "d1", "since_ms": %d}' % (time.time() * 1000)
    )
    reporting = threading.Timer(0.2, report, (bench, "d1", "worker-1"))
    reporting.start()
    [one] = daemons.daemons(bench.broker, bench.keys, fresh_s=20.0)
    reporting.join()
    assert one.state == "running"
