"""What can be known about jobs, put together from the calls that look. Blocking: `run` runs one call on the blocking transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import orjson

from upnext.core import ids, outcome, own_options, redaction
from upnext.core.entry import Meta
from upnext.core.keys import LANE_LETTERS, Keys
from upnext.core.outcome import Cost, ErrorInfo, FailureReason, JobStatus, Outcome
from upnext.engine.calls import inspect
from upnext.engine.calls.inspect import End, Found, InLane, KeptEnd, LanePart, Packed, TaskFacts, Unreadable
from upnext.engine.redis.scripts import Call, run_calls_blocking
from upnext.errors import JobNotFoundError, UsageError

T = TypeVar("T")

LOOK = 2000
"""Jobs of other tasks that one run of a script may pass over."""
MOST_PARTS = 64
"""Most calls for the jobs of one task: of jobs with much data a look shows fewer than it was asked for."""

_LOOK_CONSUMERS = 200
_TASKS_A_CALL = 100

ENDED = (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.DEAD)


class Transport(Protocol):
    """Runs calls one after the other."""

    def run(self, call: Call[T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One job as far as it is known; None: unknown, or means nothing in this state. Times are Unix ms by the server's clock.

    A job counts as running from the moment a worker has fetched it; `started_ms` is that moment until the outcome tells better.
    `since_ms`: in this state since. `dead_letter`: kept, and can be retried. `value` is JSON.
    """

    job_id: str
    task: str
    status: JobStatus
    attempt: int = 1
    max_attempts: int | None = None
    crashes: int = 0
    since_ms: int | None = None
    submitted_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    due_ms: int | None = None
    expires_ms: int | None = None
    cancel_ms: int | None = None
    worker: str | None = None
    worker_record: dict[str, Any] | None = None
    parent_id: str | None = None
    root_id: str | None = None
    lane: str | None = None
    entry_id: str | None = None
    payload: bytes | None = None
    value: bytes | None = None
    error: ErrorInfo | None = None
    reason: FailureReason | None = None
    cause: str | None = None
    progress: dict[str, Any] | None = None
    cost: Cost | None = None
    dead_letter: bool = False
    unreadable: str | None = None
    """Why what Redis has of it can't be read; the fields that depend on that are unknown."""
    own: Mapping[str, Any] | None = None
    """What it was submitted with in place of its task's options, and its labels."""
    event: str | None = None
    """The event whose handler it runs."""
    redact: tuple[str, ...] = ()
    """What its task declares as not to be shown."""

    @property
    def payload_shown(self) -> bytes | None:
        """The payload as people may see it."""
        return None if self.payload is None else redaction.json_shown(self.payload, self.redact)

    @property
    def progress_shown(self) -> dict[str, Any] | None:
        """What it has noted, as people may see it."""
        if self.progress is None or not self.redact:
            return self.progress
        return orjson.loads(redaction.json_shown(orjson.dumps(self.progress), self.redact))

    @property
    def value_shown(self) -> bytes | None:
        """The value as people may see it."""
        return None if self.value is None else redaction.json_shown(self.value, self.redact)

    @property
    def via(self) -> str | None:
        """What submitted it, where that was no job: a route, a cron, a schedule, an event; None: a program, or it is not known."""
        return own_options.via(self.own) or (f"event {self.event}" if self.event else None)

    @property
    def labels(self) -> dict[str, str]:
        return own_options.labels(self.own)


def job(transport: Transport, keys: Keys, job_id: str) -> Job:
    """Raises JobNotFoundError, UsageError for text that is not a job id, and what the transport raises."""
    found = transport.run(inspect.find_job(keys, job_id))
    one = _found(job_id, found)
    return _declared(one, found.definition)


def id_of_key(transport: Transport, keys: Keys, key: str, task: str | None = None) -> str:
    """The id of the job that holds this idempotency key, or held it last and ended. A key counts within its task; None: any.

    Raises JobNotFoundError when none is known, UsageError when jobs of several tasks are, which it names.
    """
    found = run_calls_blocking(inspect.jobs_of_key(keys, key, task), transport.run)
    if not found:
        raise JobNotFoundError(key, what="job of the key")
    if len(found) > 1:
        raise UsageError(f"jobs of several tasks have the key {key!r}: {', '.join(found)}; name the task, too")
    return found[0]


def _found(job_id: str, found: Found) -> Job:
    extra: dict[str, Any] = {"progress": found.progress, "cancel_ms": found.cancel_ms}
    match found.place:
        case None:
            raise JobNotFoundError(job_id)
        case Unreadable(why):
            return _unreadable_end(job_id, JobStatus.DONE, None, why, **extra)
        case Outcome() as end:
            extra["progress"] = end.progress
            return _ended(job_id, end, **extra)
        case InLane() as place:
            return _in_lane(job_id, place, found.server_ms, **extra)
        case Packed() as place:
            return _packed(job_id, place, **extra)


def of_worker(
    transport: Transport,
    keys: Keys,
    worker: str,
    status: JobStatus | None = None,
    task: str | None = None,
    limit: int = 100,
) -> list[Job]:
    """As `jobs`, of one Worker: what its processes run or ran, and what waits of the tasks that it serves. Also by a consumer's name.

    Of delayed jobs and ends, those among the first LOOK.
    """
    records = _consumer_records(transport, keys)
    served = {name for record in records.values() if record.get("worker") == worker for name in _tasks_of(record)}

    def of_it(one: Job) -> bool:
        if one.worker == worker:
            return True
        record = one.worker_record or records.get(one.worker or "")
        return record.get("worker") == worker if record is not None else one.task in served

    found = jobs(transport, keys, status, task, max(limit, LOOK))
    return [one for one in found if of_it(one)][:limit]


def failures(transport: Transport, keys: Keys, task: str | None = None, limit: int = 100) -> list[Job]:
    """Dead letters, and those of the recent ends that failed and left none: newest first, each once."""
    letters = dead_letters(transport, keys, task, limit)
    ended = [*jobs(transport, keys, JobStatus.FAILED, task, limit), *jobs(transport, keys, JobStatus.DEAD, task, limit)]
    unique = {one.job_id: one for one in (*ended, *letters)}
    return sorted(unique.values(), key=lambda one: -(one.finished_ms or 0))[:limit]


def matching(
    found: Iterable[Job], *, since_ms: int | None, error: str | None, labels: Sequence[tuple[str, str]] = ()
) -> list[Job]:
    """Those that came into their state since then, whose error's type or message has this in it, in any case of letters, and that have
    all these labels."""
    wanted = error.casefold() if error is not None else None

    def fits(one: Job) -> bool:
        if since_ms is not None and (one.since_ms or one.due_ms or 0) < since_ms:
            return False
        if labels:
            own = one.labels
            if any(own.get(name) != text for name, text in labels):
                return False
        return wanted is None or wanted in f"{one.error or ''} {one.cause or ''}".casefold()

    return [one for one in found if fits(one)]


def _consumer_records(transport: Transport, keys: Keys) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    cursor = "0"
    while True:
        cursor, _, page = transport.run(inspect.list_consumers(keys, cursor, _LOOK_CONSUMERS))
        found |= {facts.name: facts.record for facts in page}
        if cursor == "0":
            return found


def _tasks_of(record: dict[str, Any]) -> list[str]:
    tasks = record.get("tasks")
    return [str(name) for name in tasks] if isinstance(tasks, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def jobs(
    transport: Transport, keys: Keys, status: JobStatus | None = None, task: str | None = None, limit: int = 100
) -> list[Job]:
    """At most `limit` jobs, of one status or of all: running, queued, delayed, then recent ends.

    Queued ones come oldest first, delayed soonest first, ends newest first. Status dead
    gives the dead letters, which include jobs that failed on their last attempt.
    """
    found: list[Job] = []
    known = run_calls_blocking(inspect.list_tasks(keys, 0), transport.run)
    tasks = [task] if task else [facts.name for facts in known]
    if status in (None, JobStatus.RUNNING):
        for name in tasks:
            found += _running(transport, keys, name, limit - len(found))
    if status in (None, JobStatus.QUEUED):
        for name in tasks:
            found += _queued(transport, keys, name, limit - len(found))
    if status in (None, JobStatus.DELAYED):
        found += _paged(transport, keys, dead=False, task=task, limit=limit - len(found))
    if status is JobStatus.DEAD:
        found += _paged(transport, keys, dead=True, task=task, limit=limit - len(found))
    elif (status is None or status in ENDED) and len(found) < limit:
        wanted = ENDED if status is None else (status,)
        ends = _ends(transport, keys, tasks, task, wanted, limit - len(found))
        # A dead letter that was retried has ended before and lives again: it is listed as what it is now.
        living = {one.job_id for one in found}
        found += [_recent(end) for end in ends if end.job_id not in living]
    return _as_declared(found[:limit], known)


def lineage(transport: Transport, keys: Keys, root_id: str, limit: int = 2_000) -> list[Job]:
    """The jobs known to descend from `root_id`, itself not among them: of the newest `limit` that live or have ended."""
    everything = [*jobs(transport, keys, limit=limit), *dead_letters(transport, keys, limit=limit)]
    unique = {one.job_id: one for one in reversed(everything)}
    return sorted(
        (one for one in unique.values() if one.root_id == root_id), key=lambda one: (one.submitted_ms or 0, one.job_id)
    )


def dead_letters(
    transport: Transport,
    keys: Keys,
    task: str | None = None,
    limit: int = 100,
    group: str | None = None,
    known: Sequence[TaskFacts] | None = None,
) -> list[Job]:
    """Newest first. `group`: of one group of ends (see `upnext.core.end_groups`) alone.

    known: the registered tasks, where the caller has them.
    """
    found = _paged(transport, keys, dead=True, task=task, limit=limit, group=group)
    if known is None:
        known = run_calls_blocking(inspect.list_tasks(keys, 0), transport.run)
    return _as_declared(found, known)


def dead_letter(transport: Transport, keys: Keys, job_id: str) -> Job:
    """With its payload. Raises JobNotFoundError unless it is a dead letter now."""
    found = transport.run(inspect.read_dead(keys, job_id))
    if found is None:
        raise JobNotFoundError(job_id, "dead letter", f"the job is {job(transport, keys, job_id).status}")
    return _declared(_packed(job_id, found), transport.run(inspect.find_job(keys, job_id)).definition)


def _max_attempts(one: Job, definition: dict[str, Any] | None) -> int | None:
    options = (definition or {}).get("options")
    retries = {**(cast("dict[str, Any]", options) if isinstance(options, dict) else {}), **(one.own or {})}.get(
        "retries"
    )
    return retries + 1 if isinstance(retries, int) else None


def _as_declared(found: Iterable[Job], known: Iterable[TaskFacts]) -> list[Job]:
    """The jobs, each with what its task declares, where the task is known."""
    definitions = {one.name: one.definition for one in known}
    return [_declared(one, definitions.get(one.task)) for one in found]


def _declared(one: Job, definition: dict[str, Any] | None) -> Job:
    redact = (definition or {}).get("redact")
    names = tuple(map(str, redact)) if isinstance(redact, list) else ()  # pyright: ignore[reportUnknownArgumentType]
    event = (definition or {}).get("event")
    return replace(
        one,
        max_attempts=_max_attempts(one, definition),
        redact=names,
        event=event if isinstance(event, str) else None,
    )


def _queued(transport: Transport, keys: Keys, task: str, limit: int) -> list[Job]:
    return _in_lanes(transport, partial(inspect.queued_jobs, keys, task), limit)


def _running(transport: Transport, keys: Keys, task: str, limit: int) -> list[Job]:
    return _in_lanes(transport, partial(inspect.running_jobs, keys, task), limit)


def _in_lanes(transport: Transport, call: Callable[[str, str, int], Call[LanePart]], limit: int) -> list[Job]:
    """`call(lane, after, limit)`, until there are `limit`, or MOST_PARTS calls have been made."""
    found: list[Job] = []
    parts = 0
    for lane in LANE_LETTERS:
        after: str | None = ""
        while after is not None and len(found) < limit and parts < MOST_PARTS:
            part = transport.run(call(lane, after, limit - len(found)))
            found += [_in_lane(job_id, place, part.server_ms) for job_id, place in part.jobs]
            after = part.after or None
            parts += 1
    return found


def _ends(
    transport: Transport,
    keys: Keys,
    tasks: Sequence[str],
    task: str | None,
    wanted: Sequence[JobStatus],
    limit: int,
) -> list[End]:
    """The newest of the recent ends of all tasks and of those that each of `tasks` keeps by their ids."""
    recent = {one.job_id: one for one in reversed(_recent_ends(transport, keys, task, wanted, limit))}
    kept = kept_ends(transport, keys, tasks, wanted, limit)
    ids = [one.job_id for one in kept if one.job_id not in recent]
    known = dict(zip(ids, outcomes(transport, keys, ids), strict=True))
    older = [End(one.job_id, one.status, one.at_ms, known[one.job_id]) for one in kept if one.job_id in known]
    return sorted([*reversed(recent.values()), *older], key=lambda one: -one.at_ms)[:limit]


def kept_ends(
    transport: Transport,
    keys: Keys,
    tasks: Sequence[str],
    wanted: Sequence[JobStatus],
    limit: int,
    group: str | None = None,
) -> list[KeptEnd]:
    """The newest ends that these tasks keep by their ids, each job once."""
    found: dict[str, KeptEnd] = {}
    start = 0
    while start < len(tasks):
        part = tasks[start : start + _TASKS_A_CALL]
        looked_at, page = transport.run(inspect.kept_ends(keys, part, wanted, limit, group))
        for one in page:
            if one.job_id not in found or found[one.job_id].at_ms < one.at_ms:
                found[one.job_id] = one
        start += max(1, looked_at)
    return sorted(found.values(), key=lambda one: -one.at_ms)[:limit]


def of_group(transport: Transport, keys: Keys, task: str, group: str, limit: int = 100) -> list[Job]:
    """The newest ends of one group (see `upnext.core.end_groups`) of a task: with what its dead letter or its result still says."""
    kept = kept_ends(transport, keys, [task], ENDED, limit, group)
    letters = {one.job_id: one for one in dead_letters(transport, keys, task, limit, group)}
    known = outcomes(transport, keys, [one.job_id for one in kept])
    return [
        letters.get(one.job_id) or _recent(End(one.job_id, one.status, one.at_ms, outcome))
        for one, outcome in zip(kept, known, strict=True)
    ]


def outcomes(transport: Transport, keys: Keys, job_ids: Sequence[str]) -> list[Outcome | None]:
    """Of each its outcome, as far as it is kept."""
    found: list[Outcome | None] = []
    while len(found) < len(job_ids):
        found += transport.run(inspect.outcomes(keys, job_ids[len(found) : len(found) + inspect.MOST_HELD]))
    return found


def _recent_ends(
    transport: Transport, keys: Keys, task: str | None, wanted: Sequence[JobStatus], limit: int
) -> list[End]:
    found: list[End] = []
    after: tuple[str, int] | None = inspect.NEWEST
    while after is not None and len(found) < limit:
        part = transport.run(inspect.recent_ends(keys, task, wanted, limit - len(found), after))
        found += part.ends
        after = part.after
    return found


def _paged(
    transport: Transport, keys: Keys, *, dead: bool, task: str | None, limit: int, group: str | None = None
) -> list[Job]:
    found: list[Job] = []
    rank: int | None = 0
    parts = 0
    while rank is not None and len(found) < limit and parts < MOST_PARTS:
        parts += 1
        look = LOOK if task or group is not None else min(LOOK, limit - len(found))  # else all that it looks at fit
        page = transport.run(
            inspect.page_jobs(keys, dead=dead, task=task, rank=rank, look=look, limit=limit - len(found), group=group)
        )
        found += [_packed(job_id, place) for job_id, place in page.jobs]
        rank = page.next_rank
    return found


# -- one job from one source --------------------------------------------------------------------------------------------------------------


def _parsed(job_id: str) -> ids.JobId:
    """What an id says; of text that is none (a row that another hand wrote), nothing but what stands before the last colon."""
    if ids.is_id(job_id):
        return ids.parse(job_id)
    return ids.JobId(job_id.rpartition(":")[0] or "unreadable", "", 0, 0)


def _fields(job_id: str, meta: Meta) -> dict[str, Any]:
    parsed = _parsed(job_id)
    return {
        "job_id": job_id,
        "task": parsed.task,
        "submitted_ms": parsed.ms,
        "attempt": meta.attempt,
        "crashes": meta.crashes,
        "parent_id": meta.parent_id,
        "root_id": meta.root_id,
        "cause": meta.cause,
        "expires_ms": meta.expires_ms,
        "own": meta.own,
    }


def _in_lane(job_id: str, place: InLane, server_ms: int | None, **extra: Any) -> Job:
    held = place.held
    entered_ms = int(place.entry_id.partition("-")[0])
    fetched_ms = server_ms - held.fetched_ms_ago if held is not None and server_ms is not None else None
    return Job(
        **_fields(job_id, place.meta),
        status=JobStatus.QUEUED if held is None else JobStatus.RUNNING,
        since_ms=entered_ms if held is None else fetched_ms,
        started_ms=fetched_ms,
        worker=held.consumer if held is not None else None,
        worker_record=held.record if held is not None else None,
        lane=place.lane,
        entry_id=place.entry_id,
        payload=place.payload,
        unreadable=place.unreadable,
        **extra,
    )


def _packed(job_id: str, place: Packed, **extra: Any) -> Job:
    if not place.dead:
        fields = _fields(job_id, place.meta)
        return Job(
            **fields,
            status=JobStatus.DELAYED,
            due_ms=place.at_ms,
            lane=place.lane,
            payload=place.payload,
            unreadable=place.unreadable,
            **extra,
        )
    extra["unreadable"] = place.unreadable
    record = place.meta.outcome
    end = (
        outcome.from_dict(record)
        if record
        else Outcome(JobStatus.DEAD, attempt=place.meta.attempt, crashes=place.meta.crashes)
    )
    return _ended(job_id, end, at_ms=place.at_ms, lane=place.lane, payload=place.payload, dead_letter=True, **extra)


def _recent(end: End) -> Job:
    if isinstance(end.outcome, Unreadable):
        return _unreadable_end(end.job_id, end.status, end.at_ms, end.outcome.why)
    return _ended(end.job_id, end.outcome or Outcome(end.status), at_ms=end.at_ms)


def _unreadable_end(job_id: str, status: JobStatus, at_ms: int | None, why: str, **extra: Any) -> Job:
    return replace(_ended(job_id, Outcome(status), at_ms=at_ms, **extra), value=None, unreadable=why)


def _ended(job_id: str, end: Outcome, *, at_ms: int | None = None, **extra: Any) -> Job:
    parsed = _parsed(job_id)
    finished_ms = end.finished_ms or at_ms
    return Job(
        job_id=job_id,
        task=parsed.task,
        status=end.status,
        attempt=end.attempt,
        crashes=end.crashes,
        since_ms=finished_ms,
        submitted_ms=parsed.ms,
        started_ms=end.begun_ms,
        finished_ms=finished_ms,
        worker=end.worker,
        parent_id=end.parent_id,
        root_id=end.root_id,
        value=end.value if end.status is JobStatus.DONE else None,
        error=end.error,
        reason=end.reason,
        cause=end.cause,
        cost=end.cost,
        own={"labels": end.labels, "via": end.via} if end.labels or end.via else None,
        **extra,
    )
