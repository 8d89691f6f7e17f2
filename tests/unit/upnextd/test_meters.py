"""Counts and histograms per task in the shared page."""

from __future__ import annotations

import os
import time

from upnextd.metrics.counters import Counters
from upnextd.metrics.exporter_process import cumulative
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.meters import BOUNDS_S, Histogram, TaskMeter, total
from upnextd.shared.scoreboard import Reader, WorkerShape, Writer, create, map_writable, page_bytes

SHAPES = (WorkerShape("a", 2, ("ship", "mail")), WorkerShape("b", 1, ("count",)))


def start(cells: object, cell: int, task: int, entry_ms: int, seq: int = 0) -> None:
    cells.started(cell, task, ord("n"), entry_ms, seq, ord("n"), entry_ms, seq)  # type: ignore[attr-defined]


def test_each_task_of_each_worker_has_its_own() -> None:
    fd = create(LinuxKernel(), SHAPES, "test")
    writer, reader = Writer(map_writable(fd, SHAPES), SHAPES), Reader(LinuxKernel().map(fd, page_bytes(SHAPES)), SHAPES)
    os.close(fd)
    now_ms = time.time_ns() // 1_000_000
    first, second = writer.metered_host_of(0), writer.metered_host_of(1)
    start(first, 0, 1, now_ms - 40_000)
    start(second, 0, 0, now_ms + 9_000)
    assert reader.busy() == 2, "meters are no cells"
    first.ended(0, True)
    second.ended(0, False)
    meters = reader.meters()
    assert [(name, meter.ok, meter.failed) for name, meter in meters.items()] == [
        ("ship", 0, 0),
        ("mail", 1, 0),
        ("count", 0, 1),
    ]
    assert sum(meters["mail"].durations.counts) == sum(meters["count"].durations.counts) == 1
    assert 39 < meters["mail"].lateness.sum_s < 45
    assert meters["mail"].lateness.counts[BOUNDS_S.index(60.0)] == 1
    assert meters["count"].lateness.sum_s == 0.0, "a clock that is behind makes nobody early"
    assert (reader.done, reader.failed) == (1, 1)
    reader.close()


def test_a_job_that_waited_for_another_is_one_attempt() -> None:
    fd = create(LinuxKernel(), SHAPES, "test")
    writer, reader = Writer(map_writable(fd, SHAPES), SHAPES), Reader(LinuxKernel().map(fd, page_bytes(SHAPES)), SHAPES)
    os.close(fd)
    cells = writer.metered_host_of(0)
    now_ms = time.time_ns() // 1_000_000
    start(cells, 0, 0, now_ms, 7)
    cells.parked(0)
    start(cells, 0, 0, now_ms, 8)
    cells.ended(0, True)
    start(cells, 1, 0, now_ms, 7)
    cells.ended(1, True)
    meter = reader.meters()["ship"]
    assert (meter.ok, sum(meter.durations.counts), sum(meter.lateness.counts)) == (2, 2, 2)
    reader.close()


def test_a_job_that_ends_without_its_cell_counts() -> None:
    """It waited for another, went on when that wait ran out, and no cell came free."""
    fd = create(LinuxKernel(), SHAPES, "test")
    writer, reader = Writer(map_writable(fd, SHAPES), SHAPES), Reader(LinuxKernel().map(fd, page_bytes(SHAPES)), SHAPES)
    os.close(fd)
    cells = writer.metered_host_of(0)
    now_ms = time.time_ns() // 1_000_000
    start(cells, 0, 0, now_ms, 7)
    cells.parked(0)
    start(cells, 0, 0, now_ms, 8)
    cells.ended_parked(0, now_ms, 7, False)
    meter = reader.meters()["ship"]
    assert (meter.ok, meter.failed, sum(meter.durations.counts)) == (0, 1, 1)
    assert (reader.done, reader.failed, reader.busy()) == (0, 1, 1)
    start(cells, 1, 0, now_ms, 7)
    cells.ended(1, True)
    assert sum(reader.meters()["ship"].lateness.counts) == 3, "nothing is left of it: the same entry is another attempt"
    reader.close()


def test_totals_and_what_prometheus_wants() -> None:
    one = {"ship": TaskMeter(1, 2, Histogram(0.5, [1] * (len(BOUNDS_S) + 1)))}
    sums = total([one, one, {"mail": TaskMeter()}])
    assert (sums["ship"].ok, sums["ship"].failed, sums["ship"].durations.sum_s) == (2, 4, 1.0)
    assert one["ship"].ok == 1, "what was added is left as it was"
    buckets = cumulative(sums["ship"].durations.counts)
    assert buckets[0] == ("0.005", 2)
    assert buckets[-1] == ("+Inf", 2 * (len(BOUNDS_S) + 1))


def test_a_tally_outlives_the_children() -> None:
    tally = Counters()
    tally.child_ended("worker", "oom", {"ship": TaskMeter(ok=3)}, replaced=True)
    tally.child_ended("worker", "exit", {"ship": TaskMeter(ok=1)}, replaced=False)
    shown = tally.as_json([{"ship": TaskMeter(ok=2)}])
    assert shown["restarts"] == [{"role": "worker", "cause": "oom", "count": 1}]
    assert shown["tasks"]["ship"]["ok"] == 6
    assert shown["reloads"] == {"ok": 0, "failed": 0}
