"""Why a job doesn't run (yet): the gate that it stands at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from upnext.core.counted import counted
from upnext.core.keys import Keys
from upnext.core.lanes import Lane
from upnext.core.limits import gcra
from upnext.core.outcome import JobStatus
from upnext.core.spec import RateLimit
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import Gates
from upnext.engine.views.jobs import Job, Transport, job

_LANES: dict[str, str] = {
    Lane.NORMAL: "lane normal",
    Lane.HIGH: "lane high",
    Lane.BACK: "the lane of jobs that came back",
    Lane.SUSPECT: "the lane of suspects of a crash",
}


class Gate(StrEnum):
    """What holds a job. The first that applies, in this order."""

    ENDED = "ended"
    RUNNING = "running"
    DELAYED = "delayed"
    PAUSED = "paused"
    NO_WORKER = "no_worker"
    DRAINING = "draining"
    """Every living worker that has the task is paused or draining."""
    CONCURRENCY = "concurrency"
    RATE = "rate"
    SUSPECT = "suspect"
    """One of several suspects of a crash: they run one at a time, in the quarantine child of a daemon."""
    TURN = "turn"


@dataclass(frozen=True, slots=True)
class Explanation:
    """`position` counts from 1 in the job's lane; None where it stands in none, or too far from both ends to be counted."""

    job_id: str
    gate: Gate
    position: int | None
    detail: str


def explain(
    transport: Transport,
    keys: Keys,
    job_id: str,
    idle_pids: frozenset[tuple[str, int]] = frozenset(),
    *,
    now_ms: int | None = None,
) -> Explanation:
    """Say what holds a job. Ages count up to `now_ms` (Unix ms).

    `idle_pids` are (host, pid) of workers known to be paused or draining: Redis doesn't know, their daemon does.

    Raises JobNotFoundError and what the transport raises.
    """
    found = job(transport, keys, job_id)
    if found.status is not JobStatus.QUEUED or found.lane is None or found.entry_id is None:
        return Explanation(job_id, *_elsewhere(found, now_ms))
    gates = transport.run(inspect.gates(keys, found.task, found.lane, found.entry_id))
    position = gates.ahead + 1 if gates.ahead is not None else None
    gate, detail = _gate(found, gates, idle_pids)
    return Explanation(job_id, gate, position, detail)


def _elsewhere(found: Job, now_ms: int | None) -> tuple[Gate, None, str]:
    match found.status:
        case JobStatus.DELAYED:
            what = "it" if found.attempt == 1 else f"its attempt {found.attempt}"
            return Gate.DELAYED, None, f"{what} is due {_due(found.due_ms, now_ms)}"
        case JobStatus.RUNNING:
            return Gate.RUNNING, None, _place(found, now_ms)
        case _:
            return Gate.ENDED, None, f"it has ended: {found.status.value}"


def _due(due_ms: int | None, now_ms: int | None) -> str:
    if due_ms is None:
        return "later"
    at = f"at {datetime.fromtimestamp(due_ms / 1000, UTC).isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"
    return at if now_ms is None else f"{at}, in {max(0, due_ms - now_ms) / 1000:.1f} s"


def _place(found: Job, now_ms: int | None) -> str:
    """Where it runs: slot, daemon, host and pid, as far as the worker's record tells, and for how long."""
    record = found.worker_record or {}
    where = f"worker {found.worker}"
    if record.get("pid"):
        slot = f"{record['slot']} of {record.get('name')}" if record.get("slot") else f"worker {record.get('worker')}"
        where = f"{slot} on {record.get('host')} (pid {record['pid']})"
    if now_ms is None or found.since_ms is None:
        return f"{where} has it"
    return f"{where} has it since {max(0, now_ms - found.since_ms) / 1000:.1f} s"


def _gate(found: Job, gates: Gates, idle_pids: frozenset[tuple[str, int]]) -> tuple[Gate, str]:
    task = found.task
    if gates.paused:
        return Gate.PAUSED, f"task {task} is paused (`upnext resume-task {task}`)"
    workers = [record for record in gates.consumers if task in record.get("tasks", ())]
    if not workers:
        return Gate.NO_WORKER, f"no living worker has task {task}"
    if all((record.get("host"), record.get("pid")) in idle_pids for record in workers):
        return Gate.DRAINING, f"all {len(workers)} workers that have task {task} are paused or draining"
    limits = gates.limits or {}
    most = limits.get("concurrency")
    if most is not None and gates.held >= most:
        runs = "runs" if gates.held == 1 else "run"
        return Gate.CONCURRENCY, f"{counted(gates.held, 'job')} of task {task} {runs}, max_concurrency is {most}"
    if limits.get("rate"):
        rate = RateLimit(limits["rate"], limits["period_s"], limits.get("burst"))
        granted, _, _ = gcra(int(gates.tat_us), gates.server_us, rate, 1)
        if not granted:
            _, _, wait_ms = gcra(int(gates.tat_us), gates.server_us, rate, 0)
            return (
                Gate.RATE,
                f"rate_limit {limits['rate']} per {limits['period_s']:g} s; the next start is in {wait_ms / 1000:.2f} s",
            )
    if found.lane == Lane.SUSPECT:
        return Gate.SUSPECT, f"one of several suspects of a crash: they run one at a time, {gates.ahead} before it"
    lane = _LANES[found.lane or Lane.NORMAL]
    have_it = f"{counted(len(workers), 'worker')} {'has' if len(workers) == 1 else 'have'} the task"
    if gates.ahead is None:
        return Gate.TURN, f"it is one of {gates.waiting} in {lane}; {have_it}"
    return Gate.TURN, f"it is number {gates.ahead + 1} in {lane}; {have_it}"
