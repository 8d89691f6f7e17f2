"""The life of a job: a table keyed by (status, event). Pure.

The Lua scripts carry the moves out, each in one atomic step; this table is what they are held to. `docs/job-states.md` shows it.
"""

from __future__ import annotations

from enum import Enum

from upnext.core.outcome import JobStatus


class Event(Enum):
    """What can happen to a job. The value completes a sentence about the job."""

    PROMOTE = "its time has come"
    FETCH = "a worker takes it"
    COME_BACK = "its worker died, or handed it back"
    RETRY = "it failed and has attempts left"
    RETURN = "it returned"
    FAIL = "it failed and has no attempt left"
    EXPIRE = "queue_ttl passed"
    CRASH_OUT = "it crashed its worker max_crashes times"
    CANCEL = "cancel"
    PURGE = "purge"
    RETRY_DEAD = "dead retry"


BIRTHS = {JobStatus.QUEUED: "submit", JobStatus.DELAYED: "submit with delay or at"}
"""The statuses in which a job begins, and by what."""

ENDS = frozenset({JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.DEAD})

_ROWS: dict[JobStatus, dict[Event, JobStatus]] = {
    JobStatus.QUEUED: {
        Event.FETCH: JobStatus.RUNNING,
        Event.EXPIRE: JobStatus.FAILED,
        Event.CANCEL: JobStatus.CANCELLED,
        Event.PURGE: JobStatus.CANCELLED,
    },
    JobStatus.DELAYED: {
        Event.PROMOTE: JobStatus.QUEUED,
        Event.CANCEL: JobStatus.CANCELLED,
        Event.PURGE: JobStatus.CANCELLED,
    },
    JobStatus.RUNNING: {
        Event.COME_BACK: JobStatus.QUEUED,
        Event.RETRY: JobStatus.DELAYED,
        Event.RETURN: JobStatus.DONE,
        Event.FAIL: JobStatus.FAILED,
        Event.CRASH_OUT: JobStatus.DEAD,
        Event.CANCEL: JobStatus.CANCELLED,
    },
    JobStatus.DONE: {},
    JobStatus.FAILED: {Event.RETRY_DEAD: JobStatus.QUEUED},
    JobStatus.CANCELLED: {},
    JobStatus.DEAD: {Event.RETRY_DEAD: JobStatus.QUEUED},
}
TABLE: dict[tuple[JobStatus, Event], JobStatus | None] = {
    (status, event): row.get(event) for status, row in _ROWS.items() for event in Event
}
"""None: it changes nothing, or cannot happen."""
