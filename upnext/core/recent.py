"""What happened lately, kept for a while and within a budget; the oldest goes first."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Batches of the last `keep_s` seconds, at most `most` things and `most_bytes` of them. Times are of one monotonic clock."""

    __slots__ = ("_batches", "_bytes", "_count", "_keep_s", "_most", "_most_bytes")

    def __init__(self, keep_s: float, most: int, most_bytes: int) -> None:
        self._keep_s, self._most, self._most_bytes = keep_s, most, most_bytes
        self._batches: deque[tuple[float, int, int, T]] = deque()
        self._count = self._bytes = 0

    def add(self, batch: T, count: int, size_bytes: int, now_s: float) -> None:
        batches = self._batches
        batches.append((now_s, count, size_bytes, batch))
        self._count += count
        self._bytes += size_bytes
        while batches and (
            self._count > self._most or self._bytes > self._most_bytes or batches[0][0] < now_s - self._keep_s
        ):
            _, gone, gone_bytes, _ = batches.popleft()
            self._count -= gone
            self._bytes -= gone_bytes

    def batches(self, now_s: float) -> list[T]:
        """Oldest first."""
        return [batch for at_s, _, _, batch in self._batches if at_s >= now_s - self._keep_s]
