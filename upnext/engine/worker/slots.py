"""The slots of a worker: how many attempts run at once, and what becomes of a slot while its attempt waits for other jobs.

An attempt is in one of the states of `Slot`; TABLE says where each event leads. What a change costs follows from the states alone: an
attempt that is HELD has one of the slots, one that is RETURNING stands in line for one, one in EXCESS runs without and owes one. A slot
that comes free goes to who owes one, then to who stands in line, and only then to a new job.

Pure: no loop, no clock. The pool of threads keeps its permits in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar


class Slot(Enum):
    """Where an attempt stands with its slot."""

    UNSTARTED = auto()
    """It was fetched, and waits in the worker for its start."""
    HELD = auto()
    """It runs and has a slot."""
    WAITING = auto()
    """It waits for other jobs and has none."""
    RETURNING = auto()
    """Its waits are over; it goes on when it has a slot again."""
    EXCESS = auto()
    """Its wait ended by a timeout, a cancel or an error: it runs without a slot, and takes the next that comes free."""
    ENDED = auto()
    """It is over. What it left behind in the background may wait, and has no slot to give."""

    __hash__ = object.__hash__  # of identity, in C: TABLE is keyed by it


class Event(Enum):
    """What happens to an attempt."""

    START = auto()
    """Its function is called."""
    WAIT = auto()
    """The first of its open waits begins."""
    RETURN = auto()
    """The last of its open waits ended as it should."""
    GO_ON = auto()
    """The last of its open waits, or its return, was cut short: it goes on at once."""
    GRANT = auto()
    """A slot is given to it."""
    END = auto()
    """It is over."""

    __hash__ = object.__hash__


_ENDED = dict.fromkeys(Event, Slot.ENDED)
_ROWS: dict[Slot, dict[Event, Slot | None]] = {
    Slot.UNSTARTED: {
        Event.START: Slot.HELD,
        Event.WAIT: None,
        Event.RETURN: None,
        Event.GO_ON: None,
        Event.GRANT: None,
        Event.END: Slot.ENDED,
    },
    Slot.HELD: {
        Event.START: None,
        Event.WAIT: Slot.WAITING,
        Event.RETURN: Slot.HELD,
        Event.GO_ON: Slot.HELD,
        Event.GRANT: None,
        Event.END: Slot.ENDED,
    },
    Slot.WAITING: {
        Event.START: None,
        Event.WAIT: Slot.WAITING,
        Event.RETURN: Slot.RETURNING,
        Event.GO_ON: Slot.EXCESS,
        Event.GRANT: None,
        Event.END: Slot.ENDED,
    },
    Slot.RETURNING: {
        Event.START: None,
        Event.WAIT: Slot.WAITING,  # another part of it waits anew: what stands in line goes on beside that wait
        Event.RETURN: Slot.RETURNING,
        Event.GO_ON: Slot.EXCESS,
        Event.GRANT: Slot.HELD,
        Event.END: Slot.ENDED,
    },
    Slot.EXCESS: {
        Event.START: None,
        Event.WAIT: Slot.WAITING,
        Event.RETURN: Slot.EXCESS,
        Event.GO_ON: Slot.EXCESS,
        Event.GRANT: Slot.HELD,
        Event.END: Slot.ENDED,
    },
    Slot.ENDED: {**_ENDED, Event.START: None, Event.GRANT: None},
}
TABLE: dict[tuple[Slot, Event], Slot | None] = {
    (slot, event): to for slot, row in _ROWS.items() for event, to in row.items()
}
"""None: it can't happen, as an attempt starts once and waits only when it has started, and only those that want a slot are given one."""


class Holder(Protocol):
    """What has a state of its own."""

    slot: Slot


H = TypeVar("H", bound=Holder)


class Slots(Generic[H]):
    """`changed(holder, before, after)` is called for each change of a state, the changes that follow from it included."""

    def __init__(self, count: int, changed: Callable[[H, Slot, Slot], None]) -> None:
        self.free = count
        """Slots that a new job may take. None is free while anything wants one."""
        self._changed = changed
        self._owing: dict[H, None] = {}
        self._returning: dict[H, None] = {}

    @property
    def wanted(self) -> int:
        """How many wait for a slot, or run without."""
        return len(self._owing) + len(self._returning)

    def move(self, holder: H, event: Event) -> None:
        """Raises LookupError for what can't happen."""
        before, after = holder.slot, TABLE[holder.slot, event]
        if after is None:
            raise LookupError(f"{event.name} in state {before.name}")
        if after is before:
            return
        self._leave(holder, before)
        holder.slot = after
        self._enter(holder, after)
        self._changed(holder, before, after)
        self.settle()

    def settle(self) -> None:
        """Give free slots to those that want one."""
        while self.free > 0 and (wanting := self._owing or self._returning):
            self.move(next(iter(wanting)), Event.GRANT)

    def _leave(self, holder: H, slot: Slot) -> None:
        match slot:
            case Slot.HELD:
                self.free += 1
            case Slot.RETURNING:
                del self._returning[holder]
            case Slot.EXCESS:
                del self._owing[holder]
            case Slot.UNSTARTED | Slot.WAITING | Slot.ENDED:
                pass

    def _enter(self, holder: H, slot: Slot) -> None:
        match slot:
            case Slot.HELD:
                self.free -= 1
            case Slot.RETURNING:
                self._returning[holder] = None
            case Slot.EXCESS:
                self._owing[holder] = None
            case Slot.UNSTARTED | Slot.WAITING | Slot.ENDED:
                pass
