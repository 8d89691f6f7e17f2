"""The wake-up channel: one short word a delivery. A hint only, the truth is in the keys; who was away rereads it.

| word | meaning | rung by |
|---|---|---|
| `b` | lanes back or suspect got entries | hand_back, reap, free_suspects |
| `tTASK` | a limited task has a new job or a free permit | submit, send, promote, tick, finish, retry, linger, reap |
| `d` | the delayed set has a new head | submit, retry |
| `p` | a task was paused or resumed, or its limits changed | pause_task, register |
| `cJOB_ID` | a running job is to be cancelled | cancel |
| `w` | daemons are looked at, after a time without looks | watch_daemons |
"""

from __future__ import annotations

from enum import Enum


class Word(Enum):
    """First letter of a delivery."""

    BACK = "b"
    TASK = "t"
    DELAYED = "d"
    PLANS = "p"
    CANCEL = "c"
    WATCHED = "w"


def parse(data: bytes) -> tuple[Word, str] | None:
    """-> (word, task or job id). None for what a newer version may ring."""
    text = data.decode(errors="replace")
    try:
        return Word(text[:1]), text[1:]
    except ValueError:
        return None
