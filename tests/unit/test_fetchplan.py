"""Whom a fetch looks at: everybody soon, the busy ones always, only one when it is known that the others have nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upnext.core.fetchplan import FEW, HOT_TURNS, ORDERS, FetchPlan

Lane = tuple[str, str]


def names(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, FEW])
def test_few_tasks_are_looked_at_in_every_turn(count: int) -> None:
    plan = FetchPlan(names(count))
    for _ in range(2 * count):
        assert sorted(plan.turn()[0]) == sorted(names(count))


def test_of_many_each_has_its_turn_and_a_busy_one_is_in_all() -> None:
    plan = FetchPlan(names(200))
    seen: set[str] = set()
    for _ in range(200):
        tasks, _ = plan.turn()
        plan.gave(["t7"])
        assert len(tasks) == len(set(tasks)) <= FEW
        seen.update(tasks)
        assert len(seen) < 8 or "t7" in tasks or "t7" not in seen
    assert seen == set(names(200))


def test_a_busy_one_is_looked_at_a_few_turns_more() -> None:
    plan = FetchPlan(names(200))
    plan.turn()
    plan.gave(["t150"])
    assert ["t150" in plan.turn()[0] for _ in range(HOT_TURNS + 1)] == [True] * HOT_TURNS + [False]


def test_everywhere_is_everywhere_and_near_is_one() -> None:
    plan = FetchPlan(names(200))
    assert sorted(plan.turn(everywhere=True)[0]) == sorted(names(200))
    assert plan.turn("t5")[0] == ["t5"]
    assert sorted(plan.turn("t5", everywhere=True)[0]) == sorted(names(200))


@pytest.mark.parametrize("near", [None, "t5"])
def test_some_are_in_every_turn(near: str | None) -> None:
    plan = FetchPlan(names(200))
    for _ in range(20):
        tasks, _ = plan.turn(near, always={"t5", "t77"})
        assert len(tasks) == len(set(tasks))
        assert {"t5", "t77"} <= set(tasks)


def test_who_was_served_comes_last() -> None:
    plan = FetchPlan(names(4))
    plan.turn()
    plan.gave(["t1", "t0"])
    assert plan.turn()[0] == ["t2", "t3", "t1", "t0"]
    assert plan.turn("t0", always={"t1", "t3"})[0] == ["t3", "t1", "t0"]


def test_every_lane_is_first_now_and_then_and_normal_is_before_high_seldom() -> None:
    assert {order[0] for order in ORDERS} == set("bhn")
    assert sum(order.index("n") < order.index("h") for order in ORDERS) == 1


def serve(plan: FetchPlan, full: set[Lane], budget: int, *, everywhere: bool, always: set[str]) -> list[Lane]:
    """One fetch as the script does it, where these lanes hold jobs without end: who comes first takes all."""
    tasks, orders = plan.turn(everywhere=everywhere, always=always)
    for task, order in zip(tasks, orders, strict=True):
        for lane in order:
            if (task, lane) in full and budget:
                plan.gave([task])
                return [(task, lane)]
    return []


@given(count=st.integers(1, 60), data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_full_every_lane_is_served_within_a_bound(count: int, data: st.DataObject) -> None:
    """For every number of tasks, of busy lanes, of limited tasks, in any mixture of turns."""
    lanes = [(task, lane) for task in names(count) for lane in "bhn"]
    full = data.draw(st.sets(st.sampled_from(lanes), min_size=1, max_size=40))
    always = data.draw(st.sets(st.sampled_from(names(count)), max_size=5))
    everywhere = data.draw(st.lists(st.booleans(), min_size=1, max_size=7))
    plan, last = FetchPlan(names(count)), dict.fromkeys(full, 0)
    busy = len({task for task, _ in full})
    # A turn that looks at some of many may find none of the busy ones: a whole round of them does.
    round_turns = 1 if count <= FEW else -(-count // 8)
    bound = (busy + 1) * len(ORDERS) * round_turns
    for turn in range(1, 3 * bound):
        for lane in serve(plan, full, 1, everywhere=everywhere[turn % len(everywhere)], always=always):
            assert turn - last[lane] <= bound, (lane, turn)
            last[lane] = turn
    assert all(3 * bound - at <= bound for at in last.values()), last


@pytest.mark.parametrize("count", [*range(1, 13), FEW, FEW + 1, FEW + 6, 50, 200])
def test_with_everything_full_each_lane_of_each_task_is_first_within_its_orders(count: int) -> None:
    plan = FetchPlan(names(count))
    full = {(task, lane) for task in names(count) for lane in "bhn"}
    bound = len(ORDERS) * (count + 8)
    last = dict.fromkeys(full, 0)
    for turn in range(1, 3 * bound):
        [lane] = serve(plan, full, 1, everywhere=False, always=set())
        assert turn - last[lane] <= bound, (lane, turn)
        last[lane] = turn
    assert all(3 * bound - at <= bound for at in last.values()), last
