"""The state table: every cell, and the walks that the supervisor relies on."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from upnextd.rules.slots import (
    ENDING,
    LIVING,
    RESTING,
    SERVING,
    TABLE,
    VACANT,
    Action,
    Event,
    Life,
    Limits,
    State,
    step,
)

LIMITS = Limits(spawn_s=5.0, start_s=60.0, kill_s=1.0)


def walk(events: Iterable[Event], life: Life | None = None) -> tuple[Life, list[Action]]:
    life = life or Life()
    done: list[Action] = []
    for event in events:
        life, actions = step(life, event, 100.0, LIMITS, until=130.0)
        done += actions
    return life, done


def test_every_cell_is_there() -> None:
    assert set(TABLE) == set(State)
    for state, row in TABLE.items():
        assert set(row) == set(Event), state


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_cell_steps(state: State, event: Event) -> None:
    life, actions = step(Life(state, 1.0), event, 100.0, LIMITS, until=130.0)
    cell = TABLE[state][event]
    assert life.state is (cell.to or state)
    assert actions == cell.actions
    if cell.to is not None and cell.to is not state:
        assert life.since == 100.0
    if life.state is State.KILLING and cell.to is not None:
        assert life.deadline == 101.0


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_cell_leads_to_a_deadline_or_to_a_state_that_may_last(state: State, event: Event) -> None:
    life, _ = step(Life(state, 1.0, None if state in RESTING else 90.0), event, 100.0, LIMITS)
    assert (life.deadline is None) is (life.state in RESTING)


@pytest.mark.parametrize("state", State)
def test_time_alone_leads_every_state_to_a_slot_without_a_child(state: State) -> None:
    """Whatever never comes: reports, deaths, verdicts. Each deadline that passes is an event, and none of them cannot happen."""
    life, done = Life(state, 0.0), list[Action]()
    for _ in range(4):
        if life.state not in VACANT:
            life, actions = step(life, Event.DEADLINE, 100.0, LIMITS)
            done += actions
    assert life.state in VACANT
    assert Action.LOG_UNEXPECTED not in done
    if state in LIVING - {State.KILLED}:
        assert done[-4:] == [Action.KILL, Action.ABANDON, Action.CLASSIFY_EXIT, Action.GIVE_UP_EXIT]


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.EMPTY}
    frontier = [State.EMPTY]
    while frontier:
        for cell in TABLE[frontier.pop()].values():
            if cell.to is not None and cell.to not in reached:
                reached.add(cell.to)
                frontier.append(cell.to)
    assert reached == set(State)
    for state, row in TABLE.items():
        assert any(cell.to not in (None, state) for cell in row.values()), state


@pytest.mark.parametrize("state", sorted(LIVING | {State.SPAWNING}, key=str))
def test_a_kill_always_leads_to_the_end(state: State) -> None:
    life, _ = step(Life(state), Event.KILL, 0.0, LIMITS)
    assert life.state is (State.KILLING if state is State.SPAWNING else State.KILLED)
    # Now is now, also for one that has a moment left, or whose pid isn't known.
    life, _ = step(life, Event.KILL, 0.0, LIMITS)
    assert life.state is State.KILLED
    life, actions = step(life, Event.GONE, 1.0, LIMITS)
    assert (life.state, actions) == (State.EXITED, (Action.CLASSIFY_EXIT,))


@pytest.mark.parametrize("state", sorted(LIVING, key=str))
def test_a_death_is_always_judged(state: State) -> None:
    life, actions = step(Life(state, drained=True), Event.GONE, 0.0, LIMITS)
    assert life.state is State.EXITED
    assert actions == (Action.CLASSIFY_EXIT,)
    assert not life.drained


def test_kinds_of_states_do_not_overlap() -> None:
    assert SERVING < LIVING
    assert not RESTING & ENDING
    assert set(State) == VACANT | LIVING | {State.SPAWNING, State.EXITED}
    assert not VACANT & LIVING


def test_a_whole_life() -> None:
    life, actions = walk([Event.SPAWN, Event.FORKED, Event.BECAME_READY, Event.PAUSE, Event.RESUME, Event.DRAIN])
    assert life.state is State.DRAINING
    assert actions == [Action.FORK, Action.WATCH, Action.SEND_PAUSE, Action.SEND_RESUME, Action.SEND_DRAIN]
    life, actions = walk([Event.DRAINED], life)
    assert (life.state, life.drained) == (State.PAUSED, True)
    life, actions = walk([Event.STOP], life)
    assert (life.state, life.deadline, actions) == (State.STOPPING, 130.0, [Action.SEND_STOP])
    life, actions = walk([Event.DEADLINE, Event.GONE, Event.AGAIN], life)
    assert (life.state, actions) == (State.EMPTY, [Action.KILL, Action.CLASSIFY_EXIT])


def test_resume_forgets_that_it_was_drained() -> None:
    life, _ = walk([Event.SPAWN, Event.FORKED, Event.BECAME_READY, Event.DRAIN, Event.DRAINED, Event.RESUME])
    assert (life.state, life.drained) == (State.READY, False)


def test_a_child_stopped_before_its_pid_is_known_dies_with_the_report() -> None:
    life, actions = walk([Event.SPAWN, Event.STOP, Event.FORKED])
    assert life.state is State.KILLING
    assert actions == [Action.FORK, Action.WATCH, Action.KILL]


def test_a_child_that_never_gets_ready_is_dumped_and_killed() -> None:
    life, actions = walk([Event.SPAWN, Event.FORKED, Event.DEADLINE])
    assert life.state is State.KILLED
    assert actions == [Action.FORK, Action.WATCH, Action.DUMP, Action.KILL]


def test_a_hang_is_dumped_then_aborted_then_killed() -> None:
    life, actions = walk([Event.SPAWN, Event.FORKED, Event.BECAME_READY, Event.HUNG, Event.HUNG_ON, Event.DEADLINE])
    assert life.state is State.KILLED
    assert actions[2:] == [Action.DUMP, Action.ABORT, Action.KILL]
