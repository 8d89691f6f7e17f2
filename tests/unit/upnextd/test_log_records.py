"""Records of a child's logging, and what is let through of a flood."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import wait_until_async
from upnextd.shared.linux_kernel import LinuxKernel
from upnextd.shared.log_quota import BURST_BYTES, LINE_COST_BYTES, RATE_BYTES_PER_S, LogQuota
from upnextd.shared.log_records import LINE_CAP_BYTES, MARK, Record, RecordHandler, encode, parse
from upnextd.shared.logs import LineReader, Log, Sink


def line_of(record: Record) -> str:
    raw = encode(record)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    return raw.decode().rstrip("\n")


@given(st.text(), st.text(), st.text(), st.none() | st.text())
def test_a_record_comes_back_as_it_was(level: str, logger: str, message: str, job_id: str | None) -> None:
    record = Record(level, logger, message, job_id)
    assert parse(line_of(record)) == record


@pytest.mark.parametrize("text", ["x", "\x00", "é", "\ud800", '"'])
def test_a_long_message_keeps_its_ends_and_fits_a_line(text: str) -> None:
    line = line_of(Record("info", "shop", f"begin {text * 100_000} end"))
    assert len(line.encode()) <= LINE_CAP_BYTES
    found = parse(line)
    assert found is not None
    assert found.message.startswith("begin ")
    assert found.message.endswith(" end")
    assert "characters left out" in found.message


@pytest.mark.parametrize("line", ["", "hello", MARK, MARK + "{", MARK + "[]", MARK + "3", MARK + '{"l": "info"}'])
def test_what_is_no_record_is_a_printed_line(line: str) -> None:
    assert parse(line) is None


def logged(extra: dict[str, Any], job_id: str | None = None) -> Record:
    out, into = os.pipe()
    logger = logging.getLogger("shop.extra")
    handler = RecordHandler(into, lambda: job_id)
    logger.addHandler(handler)
    logger.warning("paid", extra=extra)
    logger.removeHandler(handler)
    os.close(into)
    with os.fdopen(out) as file:
        found = parse(file.read().rstrip("\n"))
    assert found is not None
    return found


def test_fields_of_extra_are_kept() -> None:
    found = logged(
        {"order": 7, "total": 1.5, "paid": True, "who": None, "tags": ["a"], "big": 1 << 70, "bad": "\ud800"}
    )
    assert found.fields == {
        "order": 7, "total": 1.5, "paid": True, "who": None, "tags": "['a']", "big": str(1 << 70), "bad": "?",
    }  # fmt: skip
    assert logged({"x": "y" * 100_000}).message == "paid"


def test_a_job_named_in_extra_is_the_job_of_the_line() -> None:
    assert logged({"job_id": "ship:n1-0"}).job_id == "ship:n1-0"
    assert logged({"job_id": "ship:n1-0"}).fields == {}
    assert logged({}, "ship:n2-0").job_id == "ship:n2-0"


def test_fields_stand_beside_the_line_s_own_in_json() -> None:
    out, into = os.pipe()
    sink = Sink(into)
    record = Record("error", "shop", "failed", "ship:n1-0", {"task": "ship", "attempt": 3, "level": "mine"})
    Log(sink, as_json=True, timestamps=False).child_line("worker-1", 7, line_of(record))
    sink.finish()
    os.close(into)
    with os.fdopen(out) as file:
        record = json.loads(file.readline())
    assert (record["task"], record["attempt"], record["level"], record["job_id"]) == ("ship", 3, "error", "ship:n1-0")


def handled(**fields: Any) -> Record | None:
    out, into = os.pipe()
    handler = RecordHandler(into, lambda: "ship:n1-0")
    logger = logging.getLogger("shop")
    logger.addHandler(handler)
    logger.warning(fields["message"], *fields.get("args", ()), exc_info=fields.get("exc_info"))
    logger.removeHandler(handler)
    os.close(into)
    with os.fdopen(out) as file:
        return parse(file.read().rstrip("\n"))


def test_the_handler_tells_level_logger_and_job() -> None:
    assert handled(message="sent %d", args=(3,)) == Record("warning", "shop", "sent 3", "ship:n1-0")
    error = handled(message="oh", exc_info=ValueError("no"))
    assert error is not None
    assert error.message.startswith("oh\nValueError: no")


def test_an_allowance_bursts_and_refills() -> None:
    allowance = LogQuota(0.0)
    cost = LINE_COST_BYTES + 900
    taken = sum(allowance.take(900) for _ in range(10_000))
    assert taken == BURST_BYTES // cost
    assert not allowance.take(900)
    allowance.refill(1.0)
    assert sum(allowance.take(900) for _ in range(10_000)) == pytest.approx(RATE_BYTES_PER_S // cost, abs=1)
    allowance.refill(1000.0)
    assert sum(allowance.take(900) for _ in range(10_000)) == BURST_BYTES // cost, "never more than a burst"
    allowance.refill(999.0)
    assert not allowance.take(900), "a clock that went back gives nothing"
    while allowance.take(0):
        pass
    assert allowance.exhausted


async def test_a_flood_is_counted_to_the_line() -> None:
    out, into = LinuxKernel().pipe()
    lines: list[str] = []
    reader = LineReader(out, asyncio.get_running_loop(), lines.append, LinuxKernel())
    printed = 60_000

    def flood() -> None:
        piece = (b"y" * 99 + b"\n") * 100
        for _ in range(printed // 100):
            os.write(into, piece)
        os.close(into)

    await asyncio.to_thread(flood)
    await wait_until_async(lambda: reader.closed)
    kept = [line for line in lines if not line.startswith(MARK)]
    reported = [parse(line) for line in lines if line.startswith(MARK)]
    dropped = sum(int(record.message.split()[0]) for record in reported if record is not None)
    assert len(kept) < printed
    assert abs(len(kept) + dropped - printed) <= 2
    assert all(record is not None and record.level == "warning" for record in reported)


def test_records_in_json_have_their_job() -> None:
    out, into = os.pipe()
    sink = Sink(into)
    log = Log(sink, as_json=True, timestamps=True)
    log.child_line("worker-1", 7, line_of(Record("error", "shop", "a\nb", "ship:n1-0")))
    log.child_line("worker-1", 7, "printed")
    sink.finish()
    os.close(into)
    with os.fdopen(out) as file:
        record, printed = (json.loads(line) for line in file.read().splitlines())
    assert (record["level"], record["logger"], record["message"], record["job_id"]) == (
        "error",
        "shop",
        "a\nb",
        "ship:n1-0",
    )
    assert (printed["level"], printed["message"]) == ("info", "printed")
    assert "job_id" not in printed


def test_reopening_goes_on_in_the_other_file(tmp_path: Any) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    sink = Sink(os.open(first, flags))
    log = Log(sink, as_json=False, timestamps=False)
    log.note("one")
    log.reopen(os.open(second, flags))
    log.note("two")
    sink.finish()
    assert first.read_text().endswith("one\n")
    assert second.read_text() == f"upnextd[{os.getpid()}] two\n"
