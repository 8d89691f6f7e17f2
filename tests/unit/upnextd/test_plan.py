"""Reconciling and the restart policy."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnextd.rules import plan, slots
from upnextd.rules.plan import (
    Add,
    Desired,
    Drop,
    Exit,
    InstanceView,
    Leave,
    Mode,
    Post,
    Record,
    Role,
    Step,
    judge,
    reconcile,
)
from upnextd.rules.slots import Event, Life, Limits, State

NOW = 1000.0
RUN = Desired(workers=2, generation=1, scheduler_generation=1)


def worker(number: int, state: State = State.READY, **fields: object) -> InstanceView:
    base = InstanceView(id=number, slot=f"worker-{number}", role=Role.WORKER, generation=1, state=state)
    return replace(base, **fields)


def scheduler(state: State = State.READY, **fields: object) -> InstanceView:
    base = InstanceView(id=99, slot="scheduler", role=Role.SCHEDULER, generation=1, state=state)
    return replace(base, **fields)


HERE = [worker(1), worker(2), scheduler()]


def test_from_nothing() -> None:
    assert reconcile(RUN, [], NOW) == [
        Add("worker-1", Role.WORKER, 1),
        Add("worker-2", Role.WORKER, 1),
        Add("scheduler", Role.SCHEDULER, 1),
    ]


def test_what_is_as_it_should_be_needs_nothing() -> None:
    assert reconcile(RUN, HERE, NOW) == []


def test_an_empty_place_is_filled() -> None:
    assert reconcile(RUN, [worker(1, State.EMPTY), worker(2), scheduler()], NOW) == [Post(1, Event.SPAWN)]


@pytest.mark.parametrize("state", [State.BACKOFF, State.EXITED, State.FAILED, State.SPAWNING])
def test_a_place_that_waits_is_left_alone(state: State) -> None:
    assert reconcile(RUN, [worker(1, state), worker(2), scheduler()], NOW) == []


def test_scaling_down_drains_the_last_first() -> None:
    fewer = replace(RUN, workers=1)
    assert reconcile(fewer, HERE, NOW) == [Leave(2, NOW + fewer.leave_s)]
    leaving = worker(2, leave_by=NOW + 60)
    assert reconcile(fewer, [worker(1), leaving, scheduler()], NOW) == [Post(2, Event.DRAIN)]
    drained = replace(leaving, state=State.PAUSED, drained=True)
    assert reconcile(fewer, [worker(1), drained, scheduler()], NOW) == [Post(2, Event.STOP, NOW + plan.FLUSH_GRACE_S)]
    assert reconcile(fewer, [worker(1), replace(leaving, state=State.EMPTY), scheduler()], NOW) == [Drop(2)]


def test_a_leaving_place_is_killed_when_its_time_is_over() -> None:
    leaving = worker(2, State.DRAINING, leave_by=NOW - 1)
    assert reconcile(replace(RUN, workers=1), [worker(1), leaving, scheduler()], NOW) == [Post(2, Event.KILL)]


def test_scaling_up_while_the_slot_is_still_leaving() -> None:
    leaving = worker(2, State.DRAINING, leave_by=NOW + 60)
    assert reconcile(RUN, [worker(1), leaving, scheduler()], NOW) == [Add("worker-2", Role.WORKER, 1)]


def test_a_restart_replaces_what_was_there_and_nothing_newer() -> None:
    asked = plan.renew(RUN, {"worker-1": 1})
    assert reconcile(asked, HERE, NOW) == [Add("worker-1", Role.WORKER, 1)]
    newer = worker(7, slot="worker-1")
    assert reconcile(asked, [*HERE, newer], NOW) == [Leave(1, NOW + RUN.leave_s)]
    assert reconcile(asked, [newer, worker(2), scheduler()], NOW) == []
    again = plan.renew(asked, {"worker-1": 7, "scheduler": 99})
    assert reconcile(again, [newer, worker(2), scheduler()], NOW) == [
        Add("worker-1", Role.WORKER, 1),
        Add("scheduler", Role.SCHEDULER, 1),
    ]


@pytest.mark.parametrize("state", [State.BACKOFF, State.FAILED])
def test_a_restart_of_a_slot_that_waits_is_a_fresh_try(state: State) -> None:
    places = [worker(1, state), worker(2), scheduler()]
    assert reconcile(plan.renew(RUN, {"worker-1": 1}), places, NOW) == [Add("worker-1", Role.WORKER, 1), Drop(1)]


def test_a_stand_in_fills_what_is_empty_and_replaces_nobody() -> None:
    desired = replace(RUN, generation=2, scheduler_generation=2, stand_in=1)
    wanted = replace(worker(2), generation=2)
    chief = replace(scheduler(), generation=2)
    assert reconcile(desired, [wanted, chief], NOW) == [Add("worker-1", Role.WORKER, 1)]
    empty = replace(worker(1, State.EMPTY), generation=2)
    assert reconcile(desired, [empty, wanted, chief], NOW) == [Add("worker-1", Role.WORKER, 1), Drop(1)]
    assert reconcile(desired, [worker(1), wanted, chief], NOW) == []
    back = replace(desired, stand_in=None)
    assert reconcile(back, [worker(1), wanted, chief], NOW) == [Add("worker-1", Role.WORKER, 2)]


def test_a_replacement_is_ready_before_the_old_one_leaves() -> None:
    old = worker(1, outdated=True)
    assert reconcile(RUN, [old, worker(2), scheduler()], NOW) == [Add("worker-1", Role.WORKER, 1)]
    coming = worker(7, State.STARTING, slot="worker-1")
    assert reconcile(RUN, [old, worker(2), coming, scheduler()], NOW) == []
    ready = replace(coming, state=State.READY)
    assert reconcile(RUN, [old, worker(2), ready, scheduler()], NOW) == [Leave(1, NOW + RUN.leave_s)]


def test_one_replacement_at_a_time() -> None:
    places = [worker(1, outdated=True), worker(2, outdated=True), scheduler()]
    assert reconcile(RUN, places, NOW) == [Add("worker-1", Role.WORKER, 1)]
    assert reconcile(replace(RUN, surge=0), places, NOW) == []


def test_a_new_generation_replaces_every_worker_and_the_scheduler_last() -> None:
    places = HERE
    newer = replace(RUN, generation=2)
    assert reconcile(newer, places, NOW) == [Add("worker-1", Role.WORKER, 2)]
    newest = replace(newer, scheduler_generation=2, workers=0)
    assert Add("scheduler", Role.SCHEDULER, 2) in reconcile(newest, places, NOW)


def test_a_canary_is_one_worker_beside_the_others() -> None:
    trying = replace(RUN, canary=2)
    assert reconcile(trying, HERE, NOW) == [Add("worker-1", Role.WORKER, 2)]
    canary = worker(7, State.EMPTY, slot="worker-1", generation=2)
    assert reconcile(trying, [*HERE, canary], NOW) == [Post(7, Event.SPAWN)]
    ready = replace(canary, state=State.READY)
    assert reconcile(trying, [*HERE, ready], NOW) == []


def test_a_proven_canary_takes_its_slot_at_once() -> None:
    ready = worker(7, slot="worker-1", generation=2)
    assert reconcile(replace(RUN, generation=2), [*HERE, ready], NOW) == [
        Add("worker-2", Role.WORKER, 2),
        Leave(1, NOW + RUN.leave_s),
    ]


def test_a_canary_of_a_failed_reload_leaves() -> None:
    ready = worker(7, slot="worker-1", generation=2)
    assert reconcile(RUN, [*HERE, ready], NOW) == [Leave(7, NOW + RUN.leave_s)]
    dead = replace(ready, state=State.EMPTY)
    assert reconcile(RUN, [*HERE, replace(dead, leave_by=NOW + 1)], NOW) == [Drop(7)]


@pytest.mark.parametrize("state", [State.EMPTY, State.BACKOFF, State.FAILED])
def test_nobody_waits_for_an_old_child_that_is_not_there(state: State) -> None:
    """After a crash loop: the fall-back fills every slot at once."""
    places = [worker(1, state), worker(2, state), scheduler()]
    steps = reconcile(replace(RUN, generation=0), places, NOW)
    assert steps == [Add("worker-1", Role.WORKER, 0), Add("worker-2", Role.WORKER, 0), Drop(1), Drop(2)]


def quarantine(state: State = State.READY, **fields: object) -> InstanceView:
    return worker(50, state, slot=plan.QUARANTINE, **fields)


SUSPECTS = replace(RUN, quarantine=True)


def test_a_quarantine_child_is_there_while_there_are_suspects() -> None:
    assert reconcile(SUSPECTS, HERE, NOW) == [Add(plan.QUARANTINE, Role.WORKER, 1)]
    assert reconcile(SUSPECTS, [*HERE, quarantine(State.EMPTY)], NOW) == [Post(50, Event.SPAWN)]
    assert reconcile(SUSPECTS, [*HERE, quarantine()], NOW) == []
    assert reconcile(RUN, [*HERE, quarantine()], NOW) == [Leave(50, NOW + RUN.leave_s)]
    assert reconcile(RUN, [*HERE, quarantine(leave_by=NOW + 9)], NOW) == [Post(50, Event.DRAIN)]
    assert reconcile(SUSPECTS, [*HERE, quarantine(leave_by=NOW + 9)], NOW) == [
        Add(plan.QUARANTINE, Role.WORKER, 1),
        Post(50, Event.DRAIN),
    ]


@pytest.mark.parametrize("mode", [Mode.PAUSE, Mode.DRAIN])
def test_no_suspect_starts_while_the_operator_wants_no_job_to(mode: Mode) -> None:
    held = [worker(1, State.PAUSED, drained=True), worker(2, State.PAUSED, drained=True), scheduler()]
    assert reconcile(replace(SUSPECTS, mode=mode), held, NOW) == []
    steps = reconcile(replace(SUSPECTS, mode=mode), [*held, quarantine()], NOW)
    assert Leave(50, NOW + RUN.leave_s) in steps


def test_a_quarantine_child_holds_no_slot_of_the_workers() -> None:
    """Scaling, a canary and a rollout go on beside it, and it beside them."""
    old = quarantine()
    assert reconcile(replace(SUSPECTS, workers=3), [*HERE, old], NOW) == [Add("worker-3", Role.WORKER, 1)]
    assert reconcile(replace(SUSPECTS, canary=2), [*HERE, old], NOW) == [Add("worker-1", Role.WORKER, 2)]
    newer = replace(SUSPECTS, generation=2)
    assert reconcile(newer, [*HERE, old], NOW) == [
        Add("worker-1", Role.WORKER, 2),
        Add(plan.QUARANTINE, Role.WORKER, 2),
    ]
    coming = worker(51, State.STARTING, slot=plan.QUARANTINE, generation=2)
    assert reconcile(newer, [*HERE, old, coming], NOW) == [Add("worker-1", Role.WORKER, 2)]
    assert Leave(50, NOW + RUN.leave_s) in reconcile(newer, [*HERE, old, replace(coming, state=State.READY)], NOW)


def test_a_stop_ends_it_with_the_workers() -> None:
    stop = replace(SUSPECTS, mode=Mode.STOP, stop_by=NOW + 30)
    assert Post(50, Event.STOP, NOW + 30) in reconcile(stop, [*HERE, quarantine()], NOW)
    assert Post(50, Event.KILL) in reconcile(replace(stop, mode=Mode.STOP_NOW), [*HERE, quarantine()], NOW)


def test_pause_and_resume() -> None:
    pause = replace(RUN, mode=Mode.PAUSE)
    assert reconcile(pause, HERE, NOW) == [Post(1, Event.PAUSE), Post(2, Event.PAUSE)]
    paused = [worker(1, State.PAUSED), worker(2, State.PAUSED), scheduler()]
    assert reconcile(pause, paused, NOW) == []
    assert reconcile(RUN, paused, NOW) == [Post(1, Event.RESUME), Post(2, Event.RESUME)]


def test_drain_goes_on_from_pause_and_stops_at_drained() -> None:
    assert reconcile(replace(RUN, mode=Mode.DRAIN_EXIT), HERE, NOW) == [Post(1, Event.DRAIN), Post(2, Event.DRAIN)]
    drain = replace(RUN, mode=Mode.DRAIN)
    mixed = [worker(1, State.PAUSED), worker(2, State.PAUSED, drained=True), scheduler()]
    assert reconcile(drain, mixed, NOW) == [Post(1, Event.DRAIN)]


def test_stop_ends_workers_before_the_scheduler() -> None:
    stop = replace(RUN, mode=Mode.STOP, stop_by=NOW + 30)
    assert reconcile(stop, HERE, NOW) == [Post(1, Event.STOP, NOW + 30), Post(2, Event.STOP, NOW + 30)]
    alone = [scheduler()]
    assert reconcile(stop, alone, NOW) == []
    assert reconcile(replace(stop, scheduler=False), alone, NOW) == [Leave(99, NOW + stop.leave_s)]


def test_stop_now_kills() -> None:
    now = replace(RUN, mode=Mode.STOP_NOW)
    places = [worker(1), worker(2, State.KILLED), worker(3, State.KILLING), worker(4, State.EXITED), scheduler()]
    assert reconcile(now, places, NOW) == [Post(1, Event.KILL), Post(3, Event.KILL)]


@pytest.mark.parametrize("state", [State.KILLED, State.EXITED])
def test_who_is_as_good_as_gone_is_asked_nothing_when_its_time_to_leave_is_over(state: State) -> None:
    late = replace(worker(1, state), leave_by=NOW - 1)
    assert reconcile(replace(RUN, workers=0), [late, scheduler()], NOW) == []


STATES = st.sampled_from([state for state in State if state is not State.FAILED])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), STATES, st.integers(1, 2), st.booleans()), max_size=6),
    st.integers(0, 4),
    st.sampled_from(Mode),
)
def test_it_always_settles(raw: list[tuple[int, State, int, bool]], workers: int, mode: Mode) -> None:
    """Whatever there is: with children that do what they are asked, reconciling reaches what is desired, and then is quiet."""
    desired = Desired(workers, 2, 2, mode=mode, stop_by=NOW + 1, scheduler=mode not in (Mode.STOP, Mode.STOP_NOW))
    world = World([InstanceView(i, f"worker-{n}", Role.WORKER, g, s, outdated=o) for i, (n, s, g, o) in enumerate(raw)])
    for _ in range(200):
        steps = reconcile(desired, world.places, world.now)
        if not steps and not world.obey():
            break
        world.take(steps)
    else:
        pytest.fail(f"no end: {world.places}")
    living = sorted(place.slot for place in world.places if place.role is Role.WORKER)
    expected = [] if desired.stopping else [f"worker-{n}" for n in range(1, workers + 1)]
    assert living == expected
    assert all(place.generation == 2 and not place.outdated for place in world.places)


class World:
    """Obedient children: every place gets the events that follow from its state."""

    def __init__(self, places: list[InstanceView]) -> None:
        self.now = NOW
        self.lives = {place.id: Life(place.state) for place in places}
        self._places = places
        self._ids = len(places)

    @property
    def places(self) -> list[InstanceView]:
        return [
            replace(place, state=self.lives[place.id].state, drained=self.lives[place.id].drained)
            for place in self._places
        ]

    def take(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Add(slot, role, generation):
                    self._ids += 1
                    self._places.append(InstanceView(self._ids, slot, role, generation, State.EMPTY))
                    self.lives[self._ids] = Life()
                case Drop(place):
                    self._places = [one for one in self._places if one.id != place]
                case Leave(place, by):
                    self._places = [replace(one, leave_by=by) if one.id == place else one for one in self._places]
                case Post(place, event, until):
                    self.post(place, event, until)

    def obey(self) -> bool:
        answers = {
            State.SPAWNING: Event.FORKED,
            State.STARTING: Event.BECAME_READY,
            State.DRAINING: Event.DRAINED,
            State.STOPPING: Event.GONE,
            State.KILLING: Event.GONE,
            State.KILLED: Event.GONE,
            State.EXITED: Event.AGAIN,
            State.BACKOFF: Event.DEADLINE,
        }
        moved = False
        for place in self.places:
            if place.state in answers:
                self.post(place.id, answers[place.state])
                moved = True
        return moved

    def post(self, place: int, event: Event, until: float | None = None) -> None:
        self.lives[place], _ = slots.step(self.lives[place], event, self.now, Limits(), until)


RNG = random.Random(1)


def test_a_child_that_did_something_is_replaced_at_once() -> None:
    record = Record()
    for ended in (Exit(asked=True), Exit(ran_job=True), Exit(ready_for_s=5.0)):
        for _ in range(50):
            verdict, record = judge(record, "worker-1", ended, 1, NOW, RNG)
            assert verdict.event is Event.AGAIN
    assert record.bad_exits == ()


def test_backing_off_doubles_up_to_30_s() -> None:
    for streak, plain in ((1, 0.25), (2, 0.5), (3, 1.0), (8, 30.0), (1000, 30.0)):
        for _ in range(20):
            assert plain * 0.8 <= plan.backoff_s(streak, RNG) <= plain * 1.2


def test_a_good_life_ends_the_streak() -> None:
    verdict, record = judge(Record(), "worker-1", Exit(), 4, NOW, RNG)
    verdict, record = judge(record, "worker-1", Exit(), 4, NOW, RNG)
    assert record.streak("worker-1") == 2
    assert verdict.event is Event.BACK_OFF
    verdict, record = judge(record, "worker-1", Exit(ran_job=True), 4, NOW, RNG)
    assert record.streak("worker-1") == 0


@pytest.mark.parametrize(("workers", "allowed"), [(1, 5), (2, 6), (8, 24)])
def test_the_crash_loop_is_cut_off(workers: int, allowed: int) -> None:
    record = Record()
    for _ in range(allowed):
        verdict, record = judge(record, "worker-1", Exit(ready_for_s=0.05), workers, NOW, RNG)
        assert verdict.event is Event.BACK_OFF
    verdict, record = judge(record, "worker-1", Exit(), workers, NOW + 59, RNG)
    assert verdict.event is Event.GIVE_UP


def test_bad_exits_are_forgotten_after_a_minute() -> None:
    record = Record()
    for number in range(30):
        verdict, record = judge(record, "worker-1", Exit(), 1, NOW + 15 * number, RNG)
        assert verdict.event is Event.BACK_OFF


def test_what_is_not_the_service_s_fault_backs_off_and_is_never_given_up() -> None:
    record = Record()
    for _ in range(100):
        verdict, record = judge(record, "worker-1", Exit(blameless=True), 1, NOW, RNG)
        assert verdict.event is Event.BACK_OFF


def test_each_role_and_kind_of_end_has_a_budget_of_its_own() -> None:
    kinds = [Exit(role=role, cause=cause) for role in Role for cause in plan.Cause]
    record = Record()
    for ended in kinds * 5:
        verdict, record = judge(record, "worker-1", ended, 1, NOW, RNG)
        assert (verdict.event, verdict.looping) == (Event.BACK_OFF, False)
    for ended in kinds:
        assert judge(record, "worker-1", ended, 1, NOW, RNG)[0].event is Event.GIVE_UP


def test_a_crash_loop_beside_others_that_work_is_tried_again() -> None:
    record = Record()
    for number in range(50):
        verdict, record = judge(record, "worker-2", Exit(), 2, NOW, RNG, others_work=True)
        assert (verdict.event, verdict.looping) == (Event.BACK_OFF, number >= 6)
        assert NOW < (verdict.until or 0) <= NOW + 36
    verdict, record = judge(record, "worker-2", Exit(), 2, NOW, RNG)
    assert verdict.event is Event.GIVE_UP
    assert verdict.softened().event is Event.BACK_OFF
    assert verdict.softened().until == verdict.until


def test_a_scheduler_is_not_waited_for_as_long_as_a_worker() -> None:
    for streak in range(1, 100):
        assert plan.backoff_s(streak, RNG, Role.SCHEDULER) <= 3.6


def test_code_without_workers_has_none_whatever_number_is_wanted() -> None:
    desired = Desired(3, 1, 1, has_workers=False)
    added = [step.role for step in reconcile(desired, [], NOW) if isinstance(step, plan.Add)]
    assert added == [Role.SCHEDULER]
    trial = replace(desired, canary=2, canary_has_workers=False)
    assert not any(isinstance(step, plan.Add) and step.role is Role.WORKER for step in reconcile(trial, [], NOW))
