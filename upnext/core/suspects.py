"""How a process takes suspects: jobs that ran together when their process crashed, each to be run alone. Pure; times in seconds.

Under upnextd a process of its own runs them. Where there is only one process it takes turns: what runs gets SETTLE_S to end, then a suspect
has the process to itself for ALONE_S at most, then other jobs have it for as long. So both go on, however long any of them takes.

    OTHERS → SETTLE → ALONE → OTHERS
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

SETTLE_S = 1.0
ALONE_S = 5.0
OTHERS_S = 0.5
"""Other jobs have the process for at least so long."""
SPARE_CELLS = 8
"""A scoreboard has so many cells over a worker's concurrency, used in turn, so that it still says which jobs ended last: one
that ends its process right after its own end is found among them."""


class Suspects(Enum):
    """What a worker's process does about suspects."""

    LEAVE = "another process of the daemon runs them"
    SHARE = "it runs them in turn with other jobs"
    ONLY = "it runs nothing else"


class Phase(Enum):
    """Whose turn it is in a process that shares."""

    OTHERS = "other jobs are fetched"
    SETTLE = "suspects wait: nothing is fetched until what runs has ended, or SETTLE_S have passed"
    ALONE = "a suspect runs: nothing else is fetched until it ends, or ALONE_S have passed"


class Move(Enum):
    """What to do next."""

    OTHERS = "fetch other jobs"
    LOOK = "ask whether suspects wait, then call `looked`"
    TAKE = "fetch one suspect, then call `took`"
    WAIT = "fetch nothing for `wait_s`, or until something ends"


class SuspectTurns:
    """The turns of one process that shares."""

    def __init__(self) -> None:
        self.phase = Phase.OTHERS
        self._maybe = True
        self._since = 0.0
        self._taken_at = 0.0
        self._others_until = 0.0
        self._others_have_none = False

    def may_wait(self) -> None:
        """Suspects may wait."""
        self._maybe = True

    def others_have_none(self) -> None:
        """There are no other jobs to fetch."""
        self._others_have_none = True

    def next(self, now: float, *, idle: bool, room: bool, suspect_runs: bool) -> Move:
        """`idle`: nothing runs; `room`: one more could start; `suspect_runs`: the last one that was taken has not ended."""
        match self.phase:
            case Phase.OTHERS:
                turn = now >= self._others_until or (self._others_have_none and idle)
                return Move.LOOK if self._maybe and turn and not suspect_runs else Move.OTHERS
            case Phase.SETTLE:
                return Move.TAKE if idle or (room and now >= self._since + SETTLE_S) else Move.WAIT
            case Phase.ALONE:
                if suspect_runs and now < self._taken_at + ALONE_S:
                    return Move.WAIT
                self._to_others(now, now - self._since)
                return Move.OTHERS

    def looked(self, now: float, *, waiting: bool) -> None:
        if waiting:
            self.phase, self._since = Phase.SETTLE, now
        else:
            self._maybe = False

    def took(self, now: float, *, found: bool, held_back: bool) -> None:
        """`held_back`: some wait for a place in their task's limit."""
        if found:
            self.phase, self._taken_at = Phase.ALONE, now
        else:
            self._to_others(now, ALONE_S if held_back else 0.0)
            self._maybe = held_back

    def wait_s(self, now: float) -> float | None:
        """How long to wait at most before `next` is to be asked again; None: an end or a wake-up says so."""
        match self.phase:
            case Phase.OTHERS:
                return max(0.0, self._others_until - now) or None if self._maybe else None
            case Phase.SETTLE:
                return max(0.0, self._since + SETTLE_S - now) or None
            case Phase.ALONE:
                return max(0.0, self._taken_at + ALONE_S - now) or None

    def _to_others(self, now: float, for_s: float) -> None:
        self.phase = Phase.OTHERS
        self._others_until = now + max(OTHERS_S, for_s)
        self._others_have_none = False


class OneAtATime:
    """Shared by the workers of a process that runs suspects only: of all of them, one at a time has one."""

    def __init__(self) -> None:
        self._holder: object | None = None
        self._wake: dict[object, Callable[[], None]] = {}

    def join(self, who: object, wake: Callable[[], None]) -> None:
        """`wake` is called when another gives the turn back."""
        self._wake[who] = wake

    def take(self, who: object) -> bool:
        if self._holder not in (None, who):
            return False
        self._holder = who
        return True

    def give_back(self, who: object) -> None:
        if self._holder is who:
            self._holder = None
            for other, wake in self._wake.items():
                if other is not who:
                    wake()
