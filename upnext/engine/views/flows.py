"""The jobs below a root, from their index: who submitted whom, and how each stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from upnext.core import ids
from upnext.core.keys import Keys
from upnext.core.outcome import JobStatus
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import Child
from upnext.engine.views import jobs
from upnext.engine.views.jobs import Job, Transport

_LOOK = 500


@dataclass(frozen=True, slots=True)
class Group:
    """Siblings of one task: how many, how many in each state, and the first of them."""

    task: str
    count: int
    states: dict[str, int]
    first: tuple[Job, ...]


def below(transport: Transport, keys: Keys, root_id: str) -> list[Job]:
    """Every job that descends from `root_id`, as far as it is known, oldest first: task, state, parent, when it was submitted and ended.

    Those that were submitted by a version without an index are looked for among all jobs, if there are no others.
    """
    children: dict[str, Child] = {}
    cursor = "0"
    while True:
        cursor, page = transport.run(inspect.read_flow(keys, root_id, cursor, _LOOK))
        children |= {one.job_id: one for one in page}
        if cursor == "0":
            break
    if not children:
        return jobs.lineage(transport, keys, root_id)
    open_ids = [one.job_id for one in children.values() if one.letter not in _STATUSES]
    states = dict(zip(open_ids, _states(transport, keys, open_ids), strict=True))
    found = [_job(root_id, one, states.get(one.job_id)) for one in children.values()]
    return sorted((one for one in found if one is not None), key=lambda one: (one.submitted_ms or 0, one.job_id))


def _states(transport: Transport, keys: Keys, job_ids: Sequence[str]) -> list[JobStatus | None]:
    found: list[JobStatus | None] = []
    for start in range(0, len(job_ids), inspect.MOST_HELD):
        found += transport.run(inspect.job_states(keys, job_ids[start : start + inspect.MOST_HELD]))
    return found


def _job(root_id: str, one: Child, state: JobStatus | None) -> Job | None:
    """None for one that had not ended when it was seen last, and is no longer known."""
    status = _STATUSES.get(one.letter, state)
    if status is None:
        return None
    parsed = ids.parse(one.job_id)
    return Job(
        one.job_id,
        parsed.task,
        status,
        submitted_ms=parsed.ms,
        finished_ms=one.at_ms if one.letter in _STATUSES else None,
        parent_id=one.parent_id,
        root_id=root_id,
    )


_STATUSES = {letter.value: status for letter, status in inspect.STATUSES.items()}


def grouped(siblings: Iterable[Job], most: int) -> list[Group]:
    """By task, in the order of their names, with the first `most` of each. Pure."""
    by_task: dict[str, list[Job]] = {}
    for one in siblings:
        by_task.setdefault(one.task, []).append(one)
    found: list[Group] = []
    for task, members in sorted(by_task.items()):
        words = [one.status.value for one in members]
        states = {word: words.count(word) for word in sorted(set(words))}
        found.append(Group(task, len(members), states, tuple(members[:most])))
    return found
