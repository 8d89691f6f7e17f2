"""What the processes of a slot printed last."""

from __future__ import annotations

from upnextd.shared import log_records
from upnextd.shared.log_records import Record
from upnextd.supervisor.log_tail import LINE_CHARS, LINES, LogTail


def record(message: str, logger: str = "shop") -> str:
    return log_records.encode(Record("error", logger, message)).decode().removesuffix("\n")


def test_the_newest_lines_are_kept_as_people_read_them() -> None:
    tail = LogTail()
    for number in range(LINES):
        tail.add("2026-01-01T00:00:00Z", 7, f"line {number}")
    tail.add("2026-01-01T00:00:01Z", 8, record("no stock"))
    found = tail.as_json()
    assert len(found) == LINES
    tail.add("at", 8, log_records.encode(Record("", "", "of a job", "pay:n1-1")).decode().removesuffix("\n"))
    assert tail.as_json()[-1]["text"] == "of a job"
    assert (found[0]["text"], found[0]["pid"]) == ("line 1", 7)
    assert found[-1] == {"at": "2026-01-01T00:00:01Z", "pid": 8, "text": "error: shop: no stock"}


def test_a_long_line_is_cut_and_still_read_as_a_record() -> None:
    tail = LogTail()
    tail.add("at", 7, record("x" * 5_000, ""))
    tail.add("at", 7, "y" * 5_000)
    first, second = (one["text"] for one in tail.as_json())
    assert first.startswith("error: xxx")
    assert (len(first), len(second)) == (LINE_CHARS, LINE_CHARS)
