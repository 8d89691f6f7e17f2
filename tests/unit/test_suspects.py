"""Turns of suspects and other jobs in one process: both go on whatever runs, and never two suspects at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upnext.core.suspects import ALONE_S, OTHERS_S, SETTLE_S, Move, OneAtATime, Phase, SuspectTurns


def settle(turns: SuspectTurns, now: float) -> None:
    assert turns.next(now, idle=False, room=True, suspect_runs=False) is Move.LOOK
    turns.looked(now, waiting=True)


def test_none_waits_and_others_are_fetched_until_some_are_heard_of() -> None:
    turns = SuspectTurns()
    assert turns.next(0, idle=True, room=True, suspect_runs=False) is Move.LOOK
    turns.looked(0, waiting=False)
    assert turns.next(1, idle=True, room=True, suspect_runs=False) is Move.OTHERS
    assert turns.wait_s(1) is None
    turns.may_wait()
    assert turns.next(2, idle=True, room=True, suspect_runs=False) is Move.LOOK


def test_what_runs_gets_some_time_to_end() -> None:
    turns = SuspectTurns()
    settle(turns, 0)
    assert turns.next(0.1, idle=False, room=True, suspect_runs=False) is Move.WAIT
    assert turns.wait_s(0.1) == SETTLE_S - 0.1
    assert turns.next(0.2, idle=True, room=True, suspect_runs=False) is Move.TAKE
    assert turns.next(SETTLE_S, idle=False, room=False, suspect_runs=False) is Move.WAIT
    assert turns.wait_s(SETTLE_S) is None, "what ends makes room"
    assert turns.next(SETTLE_S, idle=False, room=True, suspect_runs=False) is Move.TAKE


def test_a_suspect_is_alone_and_others_then_have_as_long() -> None:
    turns = SuspectTurns()
    settle(turns, 0)
    turns.took(1, found=True, held_back=False)
    assert turns.next(2, idle=False, room=True, suspect_runs=True) is Move.WAIT
    assert turns.next(3, idle=True, room=True, suspect_runs=False) is Move.OTHERS
    assert turns.next(5.9, idle=False, room=True, suspect_runs=False) is Move.OTHERS
    assert turns.next(6, idle=False, room=True, suspect_runs=False) is Move.LOOK


def test_when_there_are_no_others_the_next_suspect_follows_at_once() -> None:
    turns = SuspectTurns()
    settle(turns, 0)
    turns.took(0, found=True, held_back=False)
    assert turns.next(3, idle=True, room=True, suspect_runs=False) is Move.OTHERS
    turns.others_have_none()
    assert turns.next(3, idle=True, room=True, suspect_runs=False) is Move.LOOK


def test_one_that_lasts_keeps_others_only_so_long_and_the_next_waits_for_its_end() -> None:
    turns = SuspectTurns()
    settle(turns, 0)
    turns.took(0, found=True, held_back=False)
    assert turns.next(ALONE_S, idle=False, room=True, suspect_runs=True) is Move.OTHERS
    assert turns.next(1000, idle=False, room=True, suspect_runs=True) is Move.OTHERS
    assert turns.next(1001, idle=False, room=True, suspect_runs=False) is Move.LOOK


def test_one_that_a_limit_holds_back_is_asked_for_again() -> None:
    turns = SuspectTurns()
    settle(turns, 0)
    turns.took(0, found=False, held_back=True)
    assert turns.next(0, idle=False, room=True, suspect_runs=False) is Move.OTHERS
    assert turns.next(ALONE_S, idle=False, room=True, suspect_runs=False) is Move.LOOK
    turns.looked(ALONE_S, waiting=True)
    turns.took(ALONE_S, found=False, held_back=False)
    assert turns.next(99, idle=False, room=True, suspect_runs=False) is Move.OTHERS, "another process took it"


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0.01, 20)), max_size=200))
def test_both_go_on_by_time_alone(steps: list[tuple[bool, bool, float]]) -> None:
    """Suspects and others without end, in a process that is never idle: neither is fetched twice as long after the other as it may be."""
    turns = SuspectTurns()
    now, last = 0.0, {Move.OTHERS: 0.0, Move.TAKE: 0.0}
    runs_until = 0.0
    for room, lasts, length_s in steps:
        suspect_runs = now < runs_until
        move = turns.next(now, idle=False, room=room, suspect_runs=suspect_runs)
        assert move is not Move.TAKE or not suspect_runs
        match move:
            case Move.LOOK:
                turns.looked(now, waiting=True)
                continue
            case Move.TAKE:
                runs_until = now + (length_s if lasts else 0.1)
                turns.took(now, found=True, held_back=False)
                assert turns.phase is Phase.ALONE
                last[move] = now
                continue
            case Move.OTHERS:
                last[move] = now
            case Move.WAIT:
                assert not room or now - last[Move.OTHERS] <= SETTLE_S + ALONE_S + OTHERS_S + 2 * 0.25
        now += 0.25
    # From here on nothing disturbs: both have their turn within a bound.
    seen: set[Move] = set()
    end = max(now, runs_until) + 2 * (2 * SETTLE_S + 2 * ALONE_S + 20 + OTHERS_S)
    while now < end:
        move = turns.next(now, idle=False, room=True, suspect_runs=False)
        seen.add(move)
        if move is Move.LOOK:
            turns.looked(now, waiting=True)
        elif move is Move.TAKE:
            turns.took(now, found=True, held_back=False)
        else:
            now += 0.1
    assert {Move.OTHERS, Move.TAKE} <= seen


def test_one_at_a_time() -> None:
    process, woken = OneAtATime(), list[object]()
    a, b = object(), object()
    for one in (a, b):
        process.join(one, lambda one=one: woken.append(one))
    assert (process.take(a), process.take(a), process.take(b)) == (True, True, False)
    process.give_back(b)
    assert (process.take(b), woken) == (False, [])
    process.give_back(a)
    assert woken == [b]
    assert process.take(b)
