"""The slots of the real executor under many orders of events; see `tests.support.slot_model`.

Another seed, or more of them: `scripts/chaos/slots --seed N`, `--seeds N`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.slot_model import play
from upnext.engine.worker import slots
from upnext.engine.worker.slots import Event, Slot

SEEDS = 200
A_PART = 50


@pytest.fixture(autouse=True)
def _no_lines() -> Iterator[None]:
    """Thousands of jobs fail as planned."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, A_PART))
def test_slots(first: int) -> None:
    for seed in range(first, first + A_PART):
        play(seed)


def test_a_seed_is_replayed_to_the_letter() -> None:
    assert play(7).trace == play(7).trace
    assert play(7).trace != play(8).trace


def test_the_plans_reach_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that no longer came to a cell would hold whatever that cell says."""
    reached: Counter[tuple[Slot, Event]] = Counter()

    class Counting(dict[tuple[Slot, Event], "Slot | None"]):
        def __getitem__(self, cell: tuple[Slot, Event]) -> Slot | None:
            reached[cell] += 1
            return super().__getitem__(cell)

    monkeypatch.setattr(slots, "TABLE", Counting(slots.TABLE))
    for seed in range(SEEDS):
        play(seed)
    missing = {
        (slot, event)
        for (slot, event), to in slots.TABLE.items()
        if to is not None and to is not slot and not reached[slot, event]
    }
    hot_path = {(Slot.UNSTARTED, Event.START), (Slot.UNSTARTED, Event.END), (Slot.HELD, Event.END)}
    assert missing <= {*hot_path, (Slot.RETURNING, Event.END)}, "and the end of a job's thread"
    assert reached[Slot.ENDED, Event.WAIT] >= 5
    assert reached[Slot.RETURNING, Event.WAIT] >= 5
