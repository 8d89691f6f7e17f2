"""What `ctl top` shows: two looks at a daemon, and the rates between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upnext.cli import formatting
from upnext.control.status import ChildStatus, Status

SLOT_COLUMNS = (
    "slot",
    "state",
    "pid",
    "gen",
    "running job",
    "age",
    "jobs/s",
    "done",
    "failed",
    "cpu",
    "rss",
    "pss",
    "up",
    "restarts",
    "last exit",
)
SLOT_NUMBERS = ("pid", "gen", "age", "jobs/s", "done", "failed", "cpu", "rss", "pss", "up", "restarts")
SLOT_SPARE = ("gen", "pss", "up", "restarts", "pid", "cpu", "last exit", "failed", "done", "rss")
"""What a narrow terminal does without, the first of them first."""
TASK_SPARE = ("paused", "delayed", "done", "failed")
TASK_COLUMNS = ("task", "queued", "running", "delayed", "dead", "done", "failed", "jobs/s", "paused")
TASK_NUMBERS = ("queued", "running", "delayed", "dead", "done", "failed", "jobs/s")


@dataclass(frozen=True, slots=True)
class TaskLook:
    """One task's queue. `rate_per_s` is the broker's own figure, over the last minute."""

    task: str
    queued: int
    running: int
    delayed: int
    dead: int
    done: int
    failed: int
    rate_per_s: float
    paused: bool


@dataclass(frozen=True, slots=True)
class Look:
    """A daemon at one moment. `cpu_s`: CPU seconds that each pid has used. `tasks` is None when the queue can't be asked from here."""

    at_s: float
    status: Status
    cpu_s: Mapping[int, float] = field(default_factory=dict[int, float])
    tasks: Sequence[TaskLook] | None = None
    tasks_at_s: float = 0.0


def jobs_per_s(now: Look, before: Look | None) -> float | None:
    """Of all children that were there before."""
    rates = [rate for child in now.status["children"] if (rate := _child_rate(child, now, before)) is not None]
    return sum(rates) if rates else None


def slot_rows(now: Look, before: Look | None) -> list[list[Any]]:
    """Cells in the order of SLOT_COLUMNS."""
    return [_slot_row(child, now, before) for child in now.status["children"]]


def task_rows(now: Look, before: Look | None) -> list[list[Any]]:
    """Cells in the order of TASK_COLUMNS, the busiest first, those with nothing to do last."""
    ended: dict[str, int] = {}
    if before is not None and before.tasks is not None and now.tasks_at_s > before.tasks_at_s:
        ended = {task.task: task.done + task.failed for task in before.tasks}
    rows: list[tuple[bool, float, list[Any]]] = []
    for task in now.tasks or ():
        rate = task.rate_per_s
        if task.task in ended and before is not None:
            rate = max(0, task.done + task.failed - ended[task.task]) / (now.tasks_at_s - before.tasks_at_s)
        cells = [task.task, task.queued, task.running, task.delayed, task.dead, task.done, task.failed, _rate(rate)]
        idle = not (rate or task.queued or task.running or task.delayed)
        rows.append((idle, rate + task.queued, [*cells, "yes" if task.paused else None]))
    return [cells for _, _, cells in sorted(rows, key=lambda row: (row[0], -row[1], row[2][0]))]


def _slot_row(child: ChildStatus, now: Look, before: Look | None) -> list[Any]:
    job, age = _running(child)
    return [
        child["slot"],
        child["state"],
        child["pid"],
        child["generation"],
        job,
        age,
        _rate(_child_rate(child, now, before)) if child["role"] == "worker" else None,
        child["jobs_done"],
        child["jobs_failed"],
        _cpu(child, now, before),
        formatting.size(child["rss_bytes"]),
        formatting.size(child["pss_bytes"]),
        formatting.duration(child["uptime_s"]),
        child["restarts"],
        last_exit(child),
    ]


def last_exit(child: ChildStatus) -> str | None:
    """`signal SIGKILL`, `exit code 3`, `hung`."""
    last = child["last_exit"]
    if last is None:
        return None
    detail = last["signal"] or (f"code {last['code']}" if last["code"] is not None else "")
    return f"{last['cause']} {detail}".strip()


def _running(child: ChildStatus) -> tuple[str | None, str | None]:
    """The oldest running job and how many more there are, and its age."""
    jobs = child["in_flight"]
    if not jobs:
        return None, None
    oldest = max(jobs, key=lambda job: job["age_s"])
    others = child.get("in_flight_count", len(jobs)) - 1
    return f"{oldest['job_id']}{f' +{others}' if others else ''}", formatting.duration(oldest["age_s"])


def _child_rate(child: ChildStatus, now: Look, before: Look | None) -> float | None:
    if before is None or now.at_s <= before.at_s:
        return None
    for former in before.status["children"]:
        if former["slot"] == child["slot"] and former["pid"] == child["pid"] is not None:
            ended = child["jobs_done"] + child["jobs_failed"] - former["jobs_done"] - former["jobs_failed"]
            return max(0, ended) / (now.at_s - before.at_s)
    return None


def _cpu(child: ChildStatus, now: Look, before: Look | None) -> str | None:
    pid = child["pid"]
    if pid is None or before is None or pid not in now.cpu_s or pid not in before.cpu_s or now.at_s <= before.at_s:
        return None
    return f"{100 * max(0.0, now.cpu_s[pid] - before.cpu_s[pid]) / (now.at_s - before.at_s):.0f}%"


def _rate(per_s: float | None) -> str | None:
    return None if per_s is None else f"{per_s:.1f}" if per_s < 10 else f"{per_s:.0f}"
