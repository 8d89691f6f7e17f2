"""The table of a reload: every cell, and the walks that the daemon relies on."""

from __future__ import annotations

import pytest

from upnextd.rules.rollout import OVER, TABLE, Action, Event, Phase, step


def test_every_cell_is_there() -> None:
    assert set(TABLE) == set(Phase)
    for phase, row in TABLE.items():
        assert set(row) == set(Event), phase


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_every_cell_steps(phase: Phase, event: Event) -> None:
    to, action = step(phase, event)
    cell = TABLE[phase][event]
    assert (to, action) == (cell[0] or phase, cell[1])
    assert (action is None) == (cell[0] is None), "a move does something, staying does nothing"


def test_a_good_reload() -> None:
    phase, done = Phase.QUEUED, []
    for event in (
        *(Event.TURN, Event.IMPORTED, Event.PROVEN, Event.REPLACED, Event.SETTLED, Event.APIS_SWITCHED),
        Event.SWITCHED,
    ):
        phase, action = step(phase, event)
        done.append(action)
    assert phase is Phase.COMMITTED
    assert done == [
        *(Action.IMPORT, Action.TRY, Action.ROLL, Action.SETTLE, Action.SWITCH_APIS, Action.SWITCH, Action.COMMIT),
    ]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in OVER])
def test_whatever_breaks_before_the_commit_rolls_back(phase: Phase) -> None:
    undo = Action.LEAVE if phase is Phase.QUEUED else Action.ROLL_BACK
    assert step(phase, Event.BROKE) == (Phase.FAILED, undo)


@pytest.mark.parametrize("phase", Phase)
def test_a_newer_one_takes_the_place_of_one_that_has_replaced_no_worker(phase: Phase) -> None:
    early = phase in (Phase.QUEUED, Phase.IMPORTING, Phase.TRYING)
    assert step(phase, Event.NEWER) == ((Phase.SUPERSEDED, Action.LEAVE) if early else (phase, None))


@pytest.mark.parametrize("phase", sorted(OVER, key=str))
@pytest.mark.parametrize("event", Event)
def test_what_is_over_stays_over(phase: Phase, event: Event) -> None:
    assert step(phase, event) == (phase, None)
