"""A job's id: `TASK:` + the letter of the lane it was born in + its first entry id, `process_order:n1763762400123-0`.

Readable, costs no bytes in the entry, and leads to a queued job in O(log n). Ids parse at the last colon, so a task's name may hold one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from upnext.errors import UsageError

BORN = "nhd"
"""Letters of birth: normal lane, high lane, delayed."""

_TAIL = re.compile(r"([nhd])(\d{1,15})-(\d{1,10})\Z")
_TASK_NAME = re.compile(r"[^\s\x00-\x1f{}]{1,200}\Z")


@dataclass(frozen=True, slots=True)
class JobId:
    """The parts of a job's id."""

    task: str
    born: str
    ms: int
    seq: int

    @property
    def entry_id(self) -> str:
        """Its first entry id, where it was born in a lane; for a delayed job only its number."""
        return f"{self.ms}-{self.seq}"

    def __str__(self) -> str:
        return f"{self.task}:{self.born}{self.ms}-{self.seq}"


def make(task: str, born: str, entry_id: str) -> str:
    return f"{task}:{born}{entry_id}"


def parse(job_id: str) -> JobId:
    """Raises UsageError for text that cannot be a job id."""
    task, colon, tail = job_id.rpartition(":")
    match = _TAIL.match(tail)
    if not colon or not task or match is None:
        raise UsageError(f"{job_id!r} is not a job id (one looks like process_order:n1763762400123-0)")
    return JobId(task, match[1], int(match[2]), int(match[3]))


def is_id(text: str) -> bool:
    task, _, tail = text.rpartition(":")
    return bool(task) and _TAIL.match(tail) is not None


def check_task_name(name: str) -> str:
    """Returns the name; raises UsageError unless it is 1 to 200 characters without spaces, invisible characters or braces."""
    if not _TASK_NAME.match(name) or not name.isprintable():
        raise UsageError(f"name {name!r}: use 1 to 200 characters without spaces, invisible characters or braces")
    return name
