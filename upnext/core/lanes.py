"""The lanes of a task: streams of its entries, taken in this order of preference by a fetch that looks at all of them."""

from __future__ import annotations

from enum import StrEnum


class Lane(StrEnum):
    """By the letter in the stream's key, in an entry's job id and in a packed job."""

    NORMAL = "n"
    HIGH = "h"
    """Submitted with `priority="high"`."""
    BACK = "b"
    """Came back from a dead or draining worker."""
    SUSPECT = "x"
    """Ran together with others in a process that crashed: is run alone."""
