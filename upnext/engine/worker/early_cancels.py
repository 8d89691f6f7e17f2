"""Cancels that came before their jobs: the wake-up of a cancel can be faster than the fetch of its job. Pure; times in seconds."""

from __future__ import annotations

EARLY_CANCEL_S = 10.0
"""A cancel counts for so long for a job that arrives after it."""
MOST_CANCELS = 1000
"""With so many, those whose time is over are dropped before another is kept."""


class EarlyCancels:
    """`waiting` holds the ids; it is empty when no job can be affected."""

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}
        self._until = 0.0

    def add(self, job_id: str, now: float) -> None:
        if len(self.waiting) >= MOST_CANCELS:
            self.waiting = {job: until for job, until in self.waiting.items() if until > now}
        self.waiting[job_id] = self._until = now + EARLY_CANCEL_S

    def take(self, job_id: str, now: float) -> bool:
        """-> whether the job was cancelled before it came; that is forgotten then."""
        if now > self._until:
            self.waiting.clear()
            return False
        return self.waiting.pop(job_id, 0.0) > now
