"""What `ctl top` makes of two looks."""

from __future__ import annotations

import copy
from typing import Any, cast

from tests.unit.cli.test_ctl import STATUS
from upnext.cli.ctl.samples import SLOT_COLUMNS, TASK_COLUMNS, Look, TaskLook, jobs_per_s, slot_rows, task_rows
from upnext.control.status import Status


def look(at_s: float, *, done: int = 5, pid: int = 8, cpu_s: float = 1.0, tasks: list[TaskLook] | None = None) -> Look:
    status = copy.deepcopy(STATUS)
    status["children"][0] |= {"jobs_done": done, "pid": pid}
    return Look(at_s, cast("Status", status), {pid: cpu_s}, tasks, at_s)


def cells(columns: tuple[str, ...], rows: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_the_first_look_has_no_rates() -> None:
    (row,) = cells(SLOT_COLUMNS, slot_rows(look(10.0), None))
    assert (row["jobs/s"], row["cpu"]) == (None, None)
    assert (row["running job"], row["age"], row["rss"]) == ("ship:n2-0 +1", "3.0s", "30.0M")
    assert row["last exit"] == "signal SIGKILL"
    assert jobs_per_s(look(10.0), None) is None


def test_rates_are_between_two_looks() -> None:
    before, now = look(10.0), look(12.0, done=25, cpu_s=1.5)
    (row,) = cells(SLOT_COLUMNS, slot_rows(now, before))
    assert (row["jobs/s"], row["cpu"]) == ("10", "25%")
    assert jobs_per_s(now, before) == 10.0


def test_a_new_child_starts_anew() -> None:
    now = look(12.0, done=1, pid=9)
    (row,) = cells(SLOT_COLUMNS, slot_rows(now, look(10.0)))
    assert (row["jobs/s"], row["cpu"]) == (None, None)


def test_tasks_busiest_first() -> None:
    before = [TaskLook("ship", 0, 0, 0, 0, 10, 0, 99.0, False), TaskLook("mail", 0, 0, 0, 0, 1, 1, 0.0, True)]
    now = [TaskLook("ship", 0, 0, 0, 0, 20, 0, 99.0, False), TaskLook("mail", 50, 1, 2, 3, 1, 1, 0.0, True)]
    rows = cells(TASK_COLUMNS, task_rows(look(12.0, tasks=now), look(10.0, tasks=before)))
    assert [(row["task"], row["jobs/s"], row["paused"]) for row in rows] == [
        ("mail", "0.0", "yes"),
        ("ship", "5.0", None),
    ]
    idle = TaskLook("a", 0, 0, 0, 0, 0, 0, 0.0, False)
    shown = cells(TASK_COLUMNS, task_rows(look(12.0, tasks=[idle, TaskLook("z", 0, 1, 0, 0, 0, 0, 0.0, False)]), None))
    assert [row["task"] for row in shown] == ["z", "a"], "idle tasks stand below"
    first = cells(TASK_COLUMNS, task_rows(look(12.0, tasks=now), None))
    assert [row["jobs/s"] for row in first] == ["99", "0.0"], "the broker's own figure, at the first look"
