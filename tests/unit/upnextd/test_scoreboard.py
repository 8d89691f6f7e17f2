"""Pages: what is written is read, half records never are."""

from __future__ import annotations

import os
import time
import timeit
from collections.abc import Iterator

import pytest

from upnextd.shared import scoreboard
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.scoreboard import Reader, WorkerShape, Writer, map_writable, page_bytes

SHAPES = [WorkerShape("a", 3, ("first", "second")), WorkerShape("b", 2, ("third",))]


@pytest.fixture
def page() -> Iterator[tuple[Writer, Reader]]:
    fd = scoreboard.create(LinuxKernel(), SHAPES, "test")
    writer, reader = Writer(map_writable(fd, SHAPES), SHAPES), Reader(LinuxKernel().map(fd, page_bytes(SHAPES)), SHAPES)
    os.close(fd)
    yield writer, reader
    reader.close()


def test_a_fresh_page_says_nothing(page: tuple[Writer, Reader]) -> None:
    _, reader = page
    assert reader.consumers() == ["", ""]
    assert reader.running(time.monotonic()) == [[], []]
    assert (reader.heartbeat, reader.done, reader.failed, reader.busy(), reader.ran_job) == (0, 0, 0, 0, False)


def test_jobs_of_every_worker(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    first, second = writer.host_of(0), writer.host_of(1)
    first.started(0, 1, ord("n"), 1763762400123, 7, ord("n"), 1763762400123, 7)
    first.started(2, 0, ord("b"), 1763762400999, 0, ord("d"), 1763762400000, 4_000_000_000_000)
    second.started(1, 0, ord("h"), 5, 6, ord("h"), 5, 6)
    jobs = reader.running(time.monotonic() + 2)
    assert [[(job.job_id, job.task, job.lane, job.entry_id) for job in of] for of in jobs] == [
        [
            ("second:n1763762400123-7", "second", "n", "1763762400123-7"),
            ("first:d1763762400000-4000000000000", "first", "b", "1763762400999-0"),
        ],
        [("third:h5-6", "third", "h", "5-6")],
    ]
    assert 2 <= jobs[0][0].age_s < 60
    assert reader.busy() == 3
    assert reader.ran_job


def test_ends_are_counted_and_cells_used_again(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    host = writer.host_of(0)
    for number in range(5):
        host.started(1, 0, ord("n"), number, 0, ord("n"), number, 0)
        host.ended(1, number % 2 == 0)
    assert (reader.done, reader.failed, reader.busy()) == (3, 2, 0)
    assert reader.ran_job


def test_what_ended_last_is_shown_until_its_cell_is_used_again(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    host = writer.host_of(0)
    last = SHAPES[0].cells - 1
    for cell in (0, last):
        host.started(cell, 0, ord("n"), cell, 0, ord("n"), cell, 0)
        host.ended(cell, True)
    host.started(1, 0, ord("n"), 99, 0, ord("n"), 99, 0)
    host.parked(1)
    shown = reader.ended(time.monotonic())
    assert [[job.entry_id for job in of] for of in shown] == [[f"{last}-0", "0-0"], []], (
        "the latest first; a parked one has not ended"
    )
    assert reader.running(time.monotonic()) == [[], []]
    host.started(0, 0, ord("n"), 100, 0, ord("n"), 100, 0)
    assert [job.entry_id for job in reader.ended(time.monotonic())[0]] == [f"{last}-0"]
    assert reader.busy() == 1


def test_an_attempt_that_was_not_the_last_is_no_failed_job(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    host = writer.host_of(0)
    for number, is_retried in enumerate((True, True, False)):
        host.started(1, 0, ord("n"), number, 0, ord("n"), number, 0)
        if is_retried:
            writer.retried()
        host.ended(1, False)
    assert (reader.done, reader.failed, reader.attempts) == (0, 1, 3)
    assert reader.ran_job


def test_a_parked_job_leaves_its_cell_and_is_not_counted(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    host = writer.host_of(1)
    host.started(0, 0, ord("n"), 1, 0, ord("n"), 1, 0)
    host.parked(0)
    assert (reader.busy(), reader.done, reader.failed) == (0, 0, 0)


def test_consumers_change(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    writer.consumer(1, "host.12.abcdef")
    assert reader.consumers() == ["", "host.12.abcdef"]
    writer.consumer(1, "new")
    assert reader.consumers() == ["", "new"]
    with pytest.raises(ValueError, match="bytes"):
        writer.consumer(0, "x" * scoreboard.CONSUMER_CAP_BYTES + "x")


def test_a_task_number_out_of_range_is_no_job(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    writer.host_of(1).started(0, 9, ord("n"), 1, 0, ord("n"), 1, 0)
    assert reader.running(time.monotonic()) == [[], []]


def test_heartbeats_count_up(page: tuple[Writer, Reader]) -> None:
    writer, reader = page
    writer.beat()
    writer.beat()
    assert reader.heartbeat == 2


def test_writing_a_start_is_cheap(page: tuple[Writer, Reader]) -> None:
    """Bar: 1 us on a quiet machine; five times that here, in the best of many looks that are too short to be interrupted."""
    host = page[0].host_of(0)
    runs = 1_000
    best_s = min(
        timeit.repeat(lambda: host.started(0, 1, 110, 1763762400123, 0, 110, 1763762400123, 0), number=runs, repeat=100)
    )
    assert best_s / runs < 5e-6


def test_a_page_of_another_version_is_refused() -> None:
    fd = scoreboard.create(LinuxKernel(), SHAPES, "test")
    try:
        os.pwrite(fd, (scoreboard.LAYOUT ^ 1).to_bytes(4, "little"), 0)
        with pytest.raises(RuntimeError, match="layout"):
            Reader(LinuxKernel().map(fd, page_bytes(SHAPES)), SHAPES)
        with pytest.raises(RuntimeError, match="layout"):
            Writer(map_writable(fd, SHAPES), SHAPES)
    finally:
        os.close(fd)
