"""The lines about attempts: one for each start and each end, whatever an attempt does in between."""

from __future__ import annotations

import logging

import pytest

from upnext.engine.job_lines import LOGGER, JobLines

FIRST, SECOND = (0, 100, 0), (1, 101, 0)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> JobLines:
    caplog.set_level(logging.INFO, LOGGER)
    return JobLines(("double", "broken"))


def words(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without durations."""
    return [" ".join(one for one in text.split() if not one.isdigit() and one != "ms") for text in caplog.messages]


def test_start_and_end(lines: JobLines, caplog: pytest.LogCaptureFixture) -> None:
    lines.started(3, FIRST, "n100-0")
    lines.started(4, SECOND, "n7-1")
    lines.failed("broken:n7-1", "ValueError: no")
    lines.ended(4, ok=False)
    lines.ended(3, ok=True)
    assert words(caplog) == [
        "start double n100-0",
        "start broken n7-1",
        "failed broken n7-1 ValueError: no",
        "ok double n100-0",
    ]
    assert [(one.__dict__["job_id"], one.__dict__["task"]) for one in caplog.records[1:3]] == [
        ("broken:n7-1", "broken")
    ] * 2


def test_one_that_waits_for_another_starts_once(lines: JobLines, caplog: pytest.LogCaptureFixture) -> None:
    lines.started(0, FIRST, "n100-0")
    lines.parked(0)
    lines.started(0, SECOND, "n101-0")
    lines.ended(0, ok=True)
    lines.started(1, FIRST, "n100-0")
    lines.ended(1, ok=True)
    assert words(caplog) == ["start double n100-0", "start broken n101-0", "ok broken n101-0", "ok double n100-0"]


def test_one_that_ends_while_it_waits(lines: JobLines, caplog: pytest.LogCaptureFixture) -> None:
    lines.started(0, FIRST, "n100-0")
    lines.parked(0)
    lines.ended_parked(FIRST, ok=False)
    assert words(caplog) == ["start double n100-0", "cancelled double n100-0"]


def test_what_is_cut_off_and_what_belongs_to_others(lines: JobLines, caplog: pytest.LogCaptureFixture) -> None:
    lines.started(0, FIRST, "n100-0")
    lines.forget()
    lines.ended(0, ok=False)
    lines.started(0, FIRST, "n100-0")
    lines.cut()
    lines.ended(0, ok=False)
    assert words(caplog) == ["start double n100-0", "start double n100-0", "cut double n100-0"]


def test_nothing_is_kept_of_jobs_that_are_not_shown(lines: JobLines, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    lines.started(0, FIRST, "n100-0")
    lines.failed("double:n100-0", "ValueError: no")
    lines.ended(0, ok=False)
    assert caplog.messages == []
