"""Which tasks a fetch looks at, and in which order: a busy one costs nothing to the others, and two hundred registered ones cost little.

A budget goes to whom comes first, so who was served longest ago comes first, and each task's lanes take turns by how often that task was
served. Neither depends on how many tasks there are. So with everything full, each lane of each task is served within a bounded number of
turns: about len(ORDERS) for each task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

FEW = 24
"""So many tasks are looked at in every turn; of more, the recently busy ones and a slice of the others."""

HOT_TURNS = 3
"""A task that had jobs is looked at in so many turns more."""

ORDERS = ("bhn", "hbn", "bhn", "hbn", "bhn", "hbn", "bhn", "nhb")
"""Lanes (back, high, normal) of a task, one order after the other each time it is served: high goes before normal, but not always."""


class FetchPlan:
    """Turns of looking. After a turn, tell `gave` what it found."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = list(tasks)
        self._turn = 0
        self._cold_at = 0
        self._times = dict.fromkeys(tasks, 0)
        """How often each was served; who was served longest ago is first."""
        self._served = 0
        self._served_at = {task: at - len(self._tasks) for at, task in enumerate(tasks)}
        self._hot: dict[str, int] = {}

    def turn(
        self, near: str | None = None, *, everywhere: bool = False, always: Collection[str] = ()
    ) -> tuple[list[str], list[str]]:
        """-> tasks in order, and for each its lanes in order.

        everywhere: all tasks, because any lane may have got something.
        near: only this one, because it is known that the others' lanes have nothing.
        always: these in any case.
        """
        self._turn += 1
        if near is not None and not everywhere:
            chosen = self._oldest_first({near, *always})
        elif everywhere or len(self._tasks) <= FEW:
            chosen = list(self._times)
        else:
            chosen = self._oldest_first(self._some(always))
        return chosen, [ORDERS[self._times[task] % len(ORDERS)] for task in chosen]

    def gave(self, tasks: Iterable[str]) -> None:
        """These had jobs in the last turn, in this order."""
        for task in tasks:
            self._times[task] = self._times.pop(task) + 1
            self._served += 1
            self._served_at[task] = self._served
            self._hot.pop(task, None)
            self._hot[task] = self._turn + HOT_TURNS
        if len(self._hot) > 4 * FEW:
            self._hot = {task: until for task, until in self._hot.items() if until >= self._turn}

    def _some(self, always: Collection[str]) -> dict[str, None]:
        """The recently busy, and the next of the others in turn."""
        tasks = self._tasks
        chosen = dict.fromkeys(task for task, until in self._hot.items() if until >= self._turn)
        chosen.update(dict.fromkeys(always))
        room = max(8, FEW - len(chosen))
        for offset in range(len(tasks)):
            task = tasks[(self._cold_at + offset) % len(tasks)]
            if task not in chosen:
                chosen[task] = None
                room -= 1
                if not room:
                    self._cold_at = (self._cold_at + offset + 1) % len(tasks)
                    break
        return chosen

    def _oldest_first(self, chosen: Iterable[str]) -> list[str]:
        return sorted(chosen, key=self._served_at.__getitem__)
