"""The table of a job's life: whole, and with a way to an end from everywhere."""

from __future__ import annotations

from upnext.core.job_states import BIRTHS, ENDS, TABLE, Event
from upnext.core.outcome import JobStatus


def reachable(begin: JobStatus, without: Event | None = None) -> set[JobStatus]:
    seen, todo = {begin}, [begin]
    while todo:
        status = todo.pop()
        following = {to for (origin, event), to in TABLE.items() if origin is status and to and event is not without}
        todo += following - seen
        seen |= following
    return seen


def test_every_cell_is_present() -> None:
    assert set(TABLE) == {(status, event) for status in JobStatus for event in Event}


def test_every_status_is_reached_and_leads_to_each_end() -> None:
    assert set.union(*(reachable(status) for status in BIRTHS)) == set(JobStatus)
    for status in set(JobStatus) - ENDS:
        assert reachable(status) >= ENDS


def test_only_an_operator_brings_a_job_back_from_its_end() -> None:
    for status in ENDS:
        assert reachable(status, without=Event.RETRY_DEAD) == {status}


def test_an_operator_can_end_whatever_lives() -> None:
    for status in set(JobStatus) - ENDS:
        assert TABLE[status, Event.CANCEL] is JobStatus.CANCELLED


def test_every_event_does_something_somewhere() -> None:
    assert {event for (_, event), to in TABLE.items() if to} == set(Event)
