"""Which tasks a fetch looks at, and in which order: a busy one costs nothing to the others, and two hundred registered ones cost little."""

from __future__ import annotations

from collections.abc import Collection, Sequence

FEW = 24
"""So many tasks are looked at in every turn; of more, the recently busy ones and a slice of the others."""

COLD_FIRST = 4
"""In one turn of so many the others come first: the busy ones may take all that a turn gives."""


class FetchPlan:
    """Turns of looking. After a turn, tell `gave` what it found."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = list(tasks)
        self._turn = 0
        self._cold_at = 0
        self._hot: dict[str, int] = {}

    def turn(self, near: str | None = None, *, everywhere: bool = False) -> tuple[list[str], str]:
        """-> tasks in order, lanes in order.

        everywhere: all tasks, because any lane may have got something.
        near: only this one, because it is known that the others' lanes have nothing.
        """
        self._turn += 1
        lanes = "bhn" if self._turn % 2 else "hnb"
        tasks = self._tasks
        if near is not None and not everywhere:
            return [near], lanes
        if everywhere or len(tasks) <= FEW:
            start = self._turn % len(tasks) if tasks else 0
            return tasks[start:] + tasks[:start], lanes
        hot = [task for task, until in self._hot.items() if until >= self._turn]
        start = self._turn % len(hot) if hot else 0
        chosen = hot[start:] + hot[:start]
        seen = set(chosen)
        room = max(8, FEW - len(chosen))
        for offset in range(len(tasks)):
            task = tasks[(self._cold_at + offset) % len(tasks)]
            if task not in seen:
                chosen.append(task)
                room -= 1
                if not room:
                    self._cold_at = (self._cold_at + offset + 1) % len(tasks)
                    break
        if self._turn % COLD_FIRST == 0:
            chosen = chosen[len(hot) :] + chosen[: len(hot)]
        return chosen, lanes

    def gave(self, tasks: Collection[str]) -> None:
        """These had jobs in the last turn: look at them in the next three."""
        for task in tasks:
            self._hot.pop(task, None)
            self._hot[task] = self._turn + 3
        if len(self._hot) > 4 * FEW:
            self._hot = {task: until for task, until in self._hot.items() if until >= self._turn}
