"""How what is sent in one call is bounded: by count and by bytes, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

CALL_BYTES = 1024 * 1024
"""Most bytes of jobs that one call of a script takes or reads, or one job: no call may hold the broker up."""

LARGE_BYTES = 4 * 1024
"""A task with jobs of more is noted with the size of its largest (`Keys.large`), and read fewer jobs at a time."""


def batches(
    items: Sequence[T], size: Callable[[T], int], most: int, most_bytes: int = CALL_BYTES
) -> Iterator[Sequence[T]]:
    """Slices of `items` in their order, each of at most `most` items and `most_bytes`, and of at least one item."""
    start = total = 0
    for at, item in enumerate(items):
        own = size(item)
        if at > start and (at - start >= most or total + own > most_bytes):
            yield items[start:at]
            start, total = at, 0
        total += own
    if start < len(items):
        yield items[start:]
