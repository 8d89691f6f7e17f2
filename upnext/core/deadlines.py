"""One wheel of deadlines for a whole process, instead of a timer per job."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

K = TypeVar("K")

_SLACK = 64


class Deadlines(Generic[K]):
    """Which keys are due when. Times are seconds of one clock of the caller's choice. add and discard are O(log n) amortised."""

    __slots__ = ("_due", "_heap", "_turn")

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        # An item counts only while `_due` holds its turn; a discarded one stays until it comes up.
        self._heap: list[tuple[float, int, K]] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def add(self, key: K, at_s: float) -> None:
        """Sets the deadline of `key`, in place of an earlier one."""
        self._turn += 1
        self._due[key] = (at_s, self._turn)
        heapq.heappush(self._heap, (at_s, self._turn, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(at, turn, key) for key, (at, turn) in self._due.items()]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Forgets `key`; nothing happens when it isn't there."""
        self._due.pop(key, None)

    def expired(self, now_s: float) -> list[K]:
        """Takes out the keys whose deadline is `now_s` or earlier, earliest first."""
        keys: list[K] = []
        while (at := self.next_at()) is not None and at <= now_s:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            keys.append(key)
        return keys

    def next_at(self) -> float | None:
        """The earliest deadline, or None."""
        heap = self._heap
        while heap:
            at, turn, key = heap[0]
            if self._due.get(key) == (at, turn):
                return at
            heapq.heappop(heap)
        return None
