"""Whom a fetch looks at: everybody soon, the busy ones always, only one when it is known that the others have nothing."""

from __future__ import annotations

import pytest

from upnext.core.fetchplan import COLD_FIRST, FEW, FetchPlan


def names(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, FEW])
def test_few_tasks_are_looked_at_in_every_turn_each_first_in_its_turn(count: int) -> None:
    plan = FetchPlan(names(count))
    turns = [plan.turn()[0] for _ in range(2 * count)]
    assert all(sorted(tasks) == sorted(names(count)) for tasks in turns)
    assert {tasks[0] for tasks in turns} == set(names(count))


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


def test_the_busy_come_first_except_in_some_turns() -> None:
    """Those in front may take all that a turn gives."""
    plan = FetchPlan(names(200))
    plan.turn()
    plan.gave(["t150"])
    firsts: list[str] = []
    for _ in range(4 * COLD_FIRST):
        firsts.append(plan.turn()[0][0])
        plan.gave(["t150"])
    assert firsts.count("t150") == 3 * COLD_FIRST
    assert len(set(firsts)) == 5


def test_everywhere_is_everywhere_and_near_is_one() -> None:
    plan = FetchPlan(names(200))
    assert sorted(plan.turn(everywhere=True)[0]) == sorted(names(200))
    assert plan.turn("t5")[0] == ["t5"]
    assert sorted(plan.turn("t5", everywhere=True)[0]) == sorted(names(200))


def test_the_lanes_take_turns() -> None:
    plan = FetchPlan(names(3))
    assert {plan.turn("t1")[1], plan.turn("t1")[1]} == {"bhn", "hnb"}
