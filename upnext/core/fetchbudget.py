"""How many jobs a worker asks for: what can start now, and what is needed to cover the round trip of a fetch. Pure; times in seconds."""

from __future__ import annotations

from upnext.core.batches import CALL_BYTES

MOST_JOBS = 1000
MOST_BYTES = 4 * 1024 * 1024
"""About so many bytes of jobs are held unstarted. How large jobs are is guessed from the newest, at first as the largest."""
PREFETCH_S = 0.05
"""Short jobs are buffered for so long a time of work, to cover the round trip of a fetch."""
MEASURE_S = 0.005
"""The rate of ends is measured no more often than this."""
REMEMBERED_S = 0.02
"""A rate that is older than this says nothing."""
ENTRY_BYTES = 100
"""What an entry takes besides its payload."""

HELD_TOO_LONG_S = 0.1
"""A job that was fetched ahead and has not started by then goes back, for a worker that is free."""
HELD_AGAIN_TOO_LONG_S = 1.0
"""The same for a job that was handed back before: where every worker is busy, it does not go round ten times a second."""


def held_too_long(held_s: float, *, handed_back: bool) -> bool:
    """Whether a job that waits here for its start is to be handed back; `handed_back`: it was before, here or elsewhere."""
    return held_s >= (HELD_AGAIN_TOO_LONG_S if handed_back else HELD_TOO_LONG_S)


class FetchBudget:
    """`prefetch`: jobs to hold beyond what can start; None adapts it to the rate at which jobs end."""

    def __init__(self, prefetch: int | None, now: float) -> None:
        self._prefetch = prefetch
        self._rate = 0.0
        self._at = now
        self._finished = 0
        self._stalled_at = -1
        self.entry_bytes = float(CALL_BYTES)
        """How large the newest entries are, about."""

    def jobs(self, now: float, *, finished: int, room: int, held: int) -> int:
        """How many to fetch, 0 for none. `finished` counts all ends so far; `room` more could start; `held` wait here for their start."""
        self._measure(now, finished)
        depth = int(self._rate * PREFETCH_S) if self._prefetch is None else self._prefetch
        if finished == self._stalled_at:
            depth = 0  # what was fetched ahead had to be handed back, and nothing has ended since
        most = min(MOST_JOBS, max(1, int(MOST_BYTES / self.entry_bytes) - held))
        budget = min(most, room + depth)
        if held and budget < depth // 4:
            return 0  # no small fetches while there is work
        return budget

    def _measure(self, now: float, finished: int) -> None:
        passed = now - self._at
        if passed > MEASURE_S:
            share = min(1.0, passed / REMEMBERED_S)
            self._rate += share * ((finished - self._finished) / passed - self._rate)
            self._at, self._finished = now, finished

    def took(self, jobs: int, payload_bytes: int) -> None:
        """Learn from what came how large entries are."""
        self.entry_bytes = max(ENTRY_BYTES + payload_bytes / jobs, self.entry_bytes / 8)

    def stalled(self, finished: int) -> None:
        """What was fetched ahead did not start in time: fetch nothing ahead until something ends."""
        self._rate = 0.0
        self._stalled_at = finished
