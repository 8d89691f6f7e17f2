"""The table of an attempt's slot, and its bookkeeping, in every order of events."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.engine.worker.slots import TABLE, Event, Slot, Slots

COUNT = 2
CAN_NOT_HAPPEN = {
    *((slot, Event.GRANT) for slot in (Slot.UNSTARTED, Slot.HELD, Slot.WAITING, Slot.ENDED)),
    *((slot, Event.START) for slot in Slot if slot is not Slot.UNSTARTED),
    *((Slot.UNSTARTED, event) for event in (Event.WAIT, Event.RETURN, Event.GO_ON)),
}


@dataclass(eq=False)
class Holder:
    slot: Slot = Slot.WAITING


def kept() -> tuple[Slots[Holder], list[tuple[Holder, Slot, Slot]]]:
    changes: list[tuple[Holder, Slot, Slot]] = []
    return Slots(COUNT, lambda *change: changes.append(change)), changes


def in_state(slots: Slots[Holder], slot: Slot) -> Holder:
    """A holder that came to this state by events; for RETURNING and EXCESS others hold all slots."""
    holder = Holder()
    match slot:
        case Slot.UNSTARTED:
            holder.slot = Slot.UNSTARTED
        case Slot.HELD:
            slots.move(holder, Event.RETURN)
        case Slot.WAITING:
            pass
        case Slot.RETURNING | Slot.EXCESS:
            for _ in range(COUNT):
                in_state(slots, Slot.HELD)
            slots.move(holder, Event.RETURN if slot is Slot.RETURNING else Event.GO_ON)
        case Slot.ENDED:
            slots.move(holder, Event.END)
    assert holder.slot is slot
    return holder


def test_every_cell_is_there() -> None:
    assert set(TABLE) == {(slot, event) for slot in Slot for event in Event}
    assert {cell for cell, to in TABLE.items() if to is None} == CAN_NOT_HAPPEN


@pytest.mark.parametrize(("slot", "event"), TABLE)
def test_each_cell(slot: Slot, event: Event) -> None:
    slots, changes = kept()
    holder = in_state(slots, slot)
    changes.clear()
    free, to = slots.free, TABLE[slot, event]
    if to is None:
        with pytest.raises(LookupError):
            slots.move(holder, event)
        return
    if event is Event.GRANT:  # given by the bookkeeping, when a slot comes free
        slots.free += 1
        slots.settle()
        free += 1
    else:
        slots.move(holder, event)
    if to in {Slot.RETURNING, Slot.EXCESS} and free:  # a free slot is theirs at once
        to = Slot.HELD
    assert holder.slot is to
    assert slots.free == free + (slot is Slot.HELD) - (to is Slot.HELD)
    assert slots.wanted == (to in {Slot.RETURNING, Slot.EXCESS})
    assert [change[0] for change in changes] == [holder] * len(changes)
    assert bool(changes) is (to is not slot)


def test_who_owes_a_slot_comes_before_who_waits_for_one() -> None:
    slots, _ = kept()
    held = [in_state(slots, Slot.HELD) for _ in range(COUNT)]
    first, second, owing = (Holder() for _ in range(3))
    for holder, event in ((first, Event.RETURN), (second, Event.RETURN), (owing, Event.GO_ON)):
        slots.move(holder, event)
    slots.move(held[0], Event.END)
    assert (owing.slot, first.slot, second.slot) == (Slot.HELD, Slot.RETURNING, Slot.RETURNING)
    slots.move(held[1], Event.WAIT)
    assert (first.slot, second.slot) == (Slot.HELD, Slot.RETURNING), "first come, first served"


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from([event for event in Event if event not in {Event.START, Event.GRANT}])
        )
    ),
)
def test_any_order_of_events(count: int, events: list[tuple[int, Event]]) -> None:
    holders = [Holder() for _ in range(6)]
    slots: Slots[Holder] = Slots(count, lambda *_: None)
    for number, event in events:
        ended = holders[number].slot is Slot.ENDED
        slots.move(holders[number], event)
        assert not ended or holders[number].slot is Slot.ENDED
        states = [holder.slot for holder in holders]
        assert slots.free == count - states.count(Slot.HELD) >= 0
        assert slots.wanted == states.count(Slot.EXCESS) + states.count(Slot.RETURNING)
        assert not (slots.free and slots.wanted), "nothing waits while a slot is free"
    for holder in holders:
        slots.move(holder, Event.END)
    assert (slots.free, slots.wanted) == (count, 0)
