"""Reconciling the processes of Apis: those that serve, those that wait for their turn, and their place in a stop."""

from __future__ import annotations

from dataclasses import replace

from upnext.control.slot_names import api_of, api_slots
from upnextd.rules.plan import (
    Add,
    Desired,
    Drop,
    InstanceView,
    Leave,
    Mode,
    Post,
    Role,
    Step,
    reconcile,
)
from upnextd.rules.slots import Event, State

NOW = 1000.0
RUN = Desired(workers=1, generation=1, scheduler_generation=1, apis=(("front", 2), ("back-office", 1)), leave_s=60.0)
WORKER = InstanceView(1, "worker-1", Role.WORKER, 1, State.READY)
SCHEDULER = InstanceView(2, "scheduler", Role.SCHEDULER, 1, State.READY)


def api(number: int, slot: str, state: State = State.READY, **fields: object) -> InstanceView:
    return replace(InstanceView(number, slot, Role.API, 1, state, leave_s=13.0), **fields)


SERVING = [api(11, "api-front-1"), api(12, "api-front-2"), api(13, "api-back-office-1")]


def steps(desired: Desired, apis: list[InstanceView]) -> list[Step]:
    return reconcile(desired, [WORKER, SCHEDULER, *apis], NOW)


def test_slots_are_named_by_the_api() -> None:
    slots = api_slots(RUN.apis)
    assert slots == ["api-front-1", "api-front-2", "api-back-office-1"]
    assert [api_of(slot) for slot in slots] == ["front", "front", "back-office"]


def test_each_process_is_made_and_none_too_many_stays() -> None:
    assert steps(RUN, []) == [Add(slot, Role.API, 1) for slot in api_slots(RUN.apis)]
    assert steps(RUN, SERVING) == []
    assert steps(replace(RUN, apis=(("front", 1),)), SERVING) == [Leave(12, NOW + 13.0), Leave(13, NOW + 13.0)]


def test_the_modes_of_workers_are_not_theirs() -> None:
    for mode in (Mode.PAUSE, Mode.DRAIN, Mode.DRAIN_EXIT):
        made = steps(replace(RUN, mode=mode), SERVING)
        assert all(isinstance(step, Post) and step.instance == 1 for step in made), mode


def test_a_generation_on_its_way_in_waits_beside_those_that_serve() -> None:
    coming = replace(RUN, canary=2, next_apis=("front",))
    waiting = api(21, "api-front-1", State.PAUSED, generation=2)
    canary = replace(WORKER, id=3, generation=2)
    assert Add("api-front-1", Role.API, 2) in steps(coming, [*SERVING, canary])
    assert steps(coming, [*SERVING, canary, waiting]) == [], "it takes no connection yet"
    rolled = replace(RUN, generation=2, next_apis=("front",))
    assert steps(rolled, [*SERVING, waiting]) == steps(rolled, SERVING)[1:], "nor while the workers roll"


def test_its_turn_comes_with_its_generation() -> None:
    switched = replace(RUN, generation=2, scheduler_generation=2, api_generation=2, apis=(("front", 1),))
    here = [replace(WORKER, generation=2), replace(SCHEDULER, generation=2)]
    waiting = api(21, "api-front-1", State.PAUSED, generation=2)
    assert reconcile(switched, [*here, SERVING[0], waiting], NOW) == [Leave(11, NOW + 13.0), Post(21, Event.RESUME)]
    leaving = replace(SERVING[0], leave_by=NOW + 13.0)
    ready = replace(waiting, state=State.READY)
    assert reconcile(switched, [*here, leaving, ready], NOW) == [Post(11, Event.STOP, NOW + 13.0)]


def test_one_that_is_given_up_leaves() -> None:
    waiting = api(21, "api-front-1", State.PAUSED, generation=2)
    assert steps(RUN, [*SERVING, waiting]) == [Leave(21, NOW + 13.0)]


def test_a_stop_ends_them_before_the_workers() -> None:
    stopping = replace(RUN, mode=Mode.STOP, stop_by=NOW + 30.0, apis_by=NOW + 15.0)
    assert steps(stopping, SERVING) == [Post(number, Event.STOP, NOW + 15.0) for number in (11, 12, 13)]
    ending = [replace(one, state=State.STOPPING) for one in SERVING]
    assert steps(stopping, ending) == []
    gone = [replace(one, state=State.EMPTY) for one in SERVING[:1]]
    assert steps(stopping, gone) == [Drop(11), Post(1, Event.STOP, NOW + 30.0)]


def test_a_stop_at_once_waits_for_none() -> None:
    now = replace(RUN, mode=Mode.STOP_NOW)
    assert steps(now, SERVING) == [Post(number, Event.KILL) for number in (11, 12, 13, 1)]
