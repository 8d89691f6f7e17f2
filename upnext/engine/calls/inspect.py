"""Calls that only look, at jobs: find_job, queued_jobs, running_jobs, read_dead, page_jobs, recent_ends, kept_ends, outcomes;
at tasks: list_tasks, count_by_task, gates; at groups of ends: list_groups, count_dead; at crons: list_crons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from upnext.core import checkup, end_groups, entry, ids, outcome
from upnext.core.batches import CALL_BYTES
from upnext.core.end_groups import Group
from upnext.core.entry import Meta
from upnext.core.keys import LANE_LETTERS, Keys
from upnext.core.lanes import Lane
from upnext.core.outcome import JobStatus, Outcome
from upnext.engine.calls.rows import lenient, pairs, readable
from upnext.engine.calls.worker import LETTERS, RATE_BUCKET_S
from upnext.engine.redis.scripts import Call, Calls, ident, script

STATUSES = {letter: status for status, letter in LETTERS.items()}
_WHOLE = re.compile(rb"-?\d{1,18}")
MOST_JOBS = 1000
LATEST_MS = 4e12
"""In the year 2096."""
"""Most jobs that one call looks at."""
MOST_HELD = 300
"""Most jobs that one call looks at where each has to be found by its id."""
RATE_BUCKETS = 6
"""Complete buckets that a rate is taken over, besides the current one."""


def _number(raw: bytes | None) -> int | None:
    """A whole number of a row; None where there is none."""
    return int(raw) if raw is not None and _WHOLE.fullmatch(raw) else None


def _json(raw: bytes | None) -> dict[str, Any] | None:
    return None if raw is None else readable(raw)


@dataclass(frozen=True, slots=True)
class Held:
    """Who has fetched an entry and how long ago. `record` is the consumer's: daemon, host, pid, ..."""

    consumer: str
    fetched_ms_ago: int
    record: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class InLane:
    """A job in a stream; `held` is None while it waits."""

    lane: str
    entry_id: str
    meta: Meta
    payload: bytes | None = None
    held: Held | None = None
    unreadable: str | None = None
    """Why its meta can't be read."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A job in the delayed set (`at_ms` is when it is due) or a dead letter (when it died). No payload where it was not asked for."""

    dead: bool
    at_ms: int
    lane: str
    meta: Meta
    payload: bytes | None = None
    unreadable: str | None = None
    """Why it can't be read; then nothing of it is known but its id and its time."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An outcome that can't be read."""

    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What find_job says. `place` is None for an unknown job."""

    server_ms: int
    cancel_ms: int | None
    progress: dict[str, Any] | None
    definition: dict[str, Any] | None
    place: InLane | Packed | Outcome | Unreadable | None


def find_job(keys: Keys, job_id: str) -> Call[Found]:
    """Raises UsageError for text that is not a job id."""
    job = ids.parse(job_id)

    def place(kind: bytes, fields: Sequence[Any]) -> InLane | Packed | Outcome | Unreadable | None:
        match kind:
            case b"s":
                lane, entry_id, payload, meta, *holder = fields
                held = (
                    Held(lenient(holder[0]), holder[1], _json(holder[2]))
                    if len(holder) == 3 and holder[0] is not None
                    else None
                )
                return InLane(lane.decode(), entry_id.decode(), _meta(meta), payload, held, _why_no_meta(meta))
            case b"d" | b"z":
                return _packed(kind == b"z", fields[0], fields[1])
            case b"r":
                return _outcome(fields[0])
            case _:
                return None

    def parse(reply: list[Any]) -> Found:
        server_ms, cancel_ms, progress, definition, kind, *fields = reply
        return Found(
            server_ms, int(cancel_ms) if cancel_ms else None, _json(progress), _json(definition), place(kind, fields)
        )

    return Call(
        script("find_job"),
        [
            keys.where,
            keys.delayed,
            keys.delayed_jobs,
            keys.result(job_id),
            keys.dead,
            keys.dead_jobs,
            keys.cancel,
            keys.notes,
            keys.tasks,
            keys.consumers,
            *keys.streams(job.task),
        ],
        [job_id, job.task, job.born, job.entry_id],
        parse,
    )


TASKS_OF_A_KEY = 100
"""About how many tasks one call looks at for a key."""


def jobs_of_key(keys: Keys, key: str, task: str | None) -> Calls[list[str]]:
    """Ids of the jobs that hold this idempotency key, or held it last: at most one of each task (None: of all that are registered)."""
    found: dict[str, str] = {}
    cursor = b"0"
    while True:
        cursor, *rows = yield Call(
            script("jobs_of_key"),
            [keys.tasks],
            [keys.idem_prefix, keys.ended_prefix, key, task or "", cursor, TASKS_OF_A_KEY],
            ident,
        )
        found |= {name.decode(): job_id.decode() for name, job_id in pairs(rows)}
        if cursor == b"0":
            return [job_id for _, job_id in sorted(found.items())]


def _ms(score: bytes, per_ms: int) -> int:
    """A score as Unix ms; for one that is not a time the nearest that a clock can show."""
    return int(max(0.0, min(float(score) / per_ms, LATEST_MS)))


def _packed(dead: bool, score: bytes, raw: bytes | None) -> Packed:
    at_ms = _ms(score, 1 if dead else 1000)
    if raw is None:
        return Packed(dead, at_ms, Lane.NORMAL, Meta(), unreadable="it is not a packed job")
    why = checkup.why_no_packed_job(raw)
    if why is not None:
        return Packed(dead, at_ms, Lane.NORMAL, Meta(), unreadable=f"it {why}")
    lane, meta, payload = entry.unpack(raw)
    return Packed(dead, at_ms, lane, meta, payload or None)


def _outcome(raw: bytes) -> Outcome | Unreadable:
    try:
        return outcome.decode(raw)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unreadable("its outcome can't be read")


def _job_id(task: str, lane: str, entry_id: str, meta: Meta) -> str:
    return meta.job_id or ids.make(task, lane, entry_id)


@dataclass(frozen=True, slots=True)
class LanePart:
    """A part of a lane. `after` is where to go on; "": that was all."""

    server_ms: int | None
    after: str
    jobs: list[tuple[str, InLane]]


def queued_jobs(keys: Keys, task: str, lane: str, after: str, limit: int) -> Call[LanePart]:
    """Jobs that wait in a lane, oldest first: at most `limit`, and no more than CALL_BYTES hold."""

    def parse(reply: list[Any]) -> LanePart:
        found: list[tuple[str, InLane]] = []
        for at in range(1, len(reply), 2):
            entry_id, meta = reply[at].decode(), _meta(reply[at + 1])
            why = _why_no_meta(reply[at + 1])
            found.append((_job_id(task, lane, entry_id, meta), InLane(lane, entry_id, meta, unreadable=why)))
        return LanePart(None, reply[0].decode(), found)

    return Call(script("queued_jobs"), [keys.stream(task, lane)], [after, min(limit, MOST_JOBS), CALL_BYTES], parse)


def running_jobs(keys: Keys, task: str, lane: str, after: str, limit: int) -> Call[LanePart]:
    """Jobs of a lane that consumers hold: as queued_jobs."""

    def parse(reply: list[Any]) -> LanePart:
        found: list[tuple[str, InLane]] = []
        records: dict[bytes, dict[str, Any] | None] = {}
        for at in range(2, len(reply), 5):
            entry_id, meta, consumer = reply[at].decode(), _meta(reply[at + 1]), reply[at + 2]
            if consumer not in records:
                records[consumer] = readable(reply[at + 4]) if reply[at + 4] else None
            held = Held(lenient(consumer), reply[at + 3], records[consumer])
            why = _why_no_meta(reply[at + 1])
            found.append((_job_id(task, lane, entry_id, meta), InLane(lane, entry_id, meta, None, held, why)))
        return LanePart(reply[0], reply[1].decode(), found)

    return Call(
        script("running_jobs"),
        [keys.stream(task, lane), keys.consumers],
        [after, min(limit, MOST_HELD), CALL_BYTES],
        parse,
    )


def _meta(raw: bytes | None) -> Meta:
    """What can't be read says nothing: a look goes on beside it."""
    try:
        return entry.decode_meta(raw)
    except ValueError:
        return Meta()


def _why_no_meta(raw: bytes | None) -> str | None:
    why = checkup.why_no_meta(raw or b"")
    return None if why is None else f"it {why}"


def read_dead(keys: Keys, job_id: str) -> Call[Packed | None]:
    """One dead letter with its payload."""

    def parse(reply: list[Any]) -> Packed | None:
        return _packed(True, reply[0], reply[1]) if reply else None

    return Call(script("read_dead"), [keys.dead, keys.dead_jobs], [job_id], parse)


@dataclass(frozen=True, slots=True)
class Page:
    """`next_rank` is where to go on; None: that was the last page."""

    next_rank: int | None
    jobs: list[tuple[str, Packed]]


def page_jobs(
    keys: Keys, *, dead: bool, task: str | None, rank: int, look: int, limit: int, group: str | None = None
) -> Call[Page]:
    """Delayed jobs soonest first, or dead letters newest first: of `look` from `rank` on, at most `limit` of this task and group.

    group: None: any; "": those that an older version wrote without one.
    """

    def parse(reply: list[Any]) -> Page:
        jobs = [(lenient(reply[at]), _packed(dead, reply[at + 1], reply[at + 2])) for at in range(1, len(reply), 3)]
        return Page(reply[0] if reply[0] >= 0 else None, jobs)

    names = [keys.dead, keys.dead_jobs] if dead else [keys.delayed, keys.delayed_jobs]
    wanted = "" if group is None else group or "-"
    return Call(script("page_jobs"), names, [task or "", rank, look, limit, CALL_BYTES, int(dead), wanted], parse)


@dataclass(frozen=True, slots=True)
class End:
    """One recent end; `outcome` is None when the result has expired or was not kept."""

    job_id: str
    status: JobStatus
    at_ms: int
    outcome: Outcome | Unreadable | None


@dataclass(frozen=True, slots=True)
class Ends:
    """A part of the remembered ends. `after` is where to go on; None: that was all."""

    after: tuple[str, int] | None
    ends: list[End]


NEWEST = ("+", 0)


def recent_ends(
    keys: Keys, task: str | None, statuses: Sequence[JobStatus], limit: int, after: tuple[str, int] = NEWEST
) -> Call[Ends]:
    """Newest first, of the few thousand that are remembered: at most `limit`, and no more than CALL_BYTES hold."""

    def parse(reply: list[Any]) -> Ends:
        ends: list[End] = []
        for at in range(2, len(reply), 4):
            raw = reply[at + 3]
            status = STATUSES[reply[at + 1].decode()]
            ends.append(End(lenient(reply[at]), status, int(reply[at + 2]), _outcome(raw) if raw else None))
        return Ends((reply[0].decode(), reply[1]) if reply[0] else None, ends)

    letters = "".join(LETTERS[status] for status in statuses)
    return Call(
        script("recent_ends"), [keys.ends], [keys.result_prefix, task or "", letters, limit, CALL_BYTES, *after], parse
    )


@dataclass(frozen=True, slots=True)
class KeptEnd:
    """One end that is kept by its id."""

    job_id: str
    status: JobStatus
    at_ms: int


def kept_ends(
    keys: Keys, tasks: Sequence[str], statuses: Sequence[JobStatus], limit: int, group: str | None = None
) -> Call[tuple[int, list[KeptEnd]]]:
    """-> (how many of the tasks were looked at; their newest ends).

    Of each task its newest successes, and of each of its groups of other ends the newest 100.
    """

    def parse(reply: list[Any]) -> tuple[int, list[KeptEnd]]:
        rows = zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
        return reply[0], [KeptEnd(lenient(job_id), STATUSES[letter.decode()], int(ms)) for job_id, letter, ms in rows]

    letters = "".join(LETTERS[status] for status in statuses)
    return Call(
        script("kept_ends"),
        [keys.groups, keys.group_ids, *(keys.done(task) for task in tasks)],
        [letters, group or "", limit, *tasks],
        parse,
    )


def outcomes(keys: Keys, job_ids: Sequence[str]) -> Call[list[Outcome | None]]:
    """Of the first ones only, where they hold more than CALL_BYTES. Those that can't be read count as gone."""

    def parse(reply: list[Any]) -> list[Outcome | None]:
        found: list[Outcome | None] = []
        for raw in reply:
            try:
                found.append(outcome.decode(raw) if raw else None)
            except ValueError:
                found.append(None)
        return found

    return Call(script("outcomes"), [keys.result(job_id) for job_id in job_ids], [CALL_BYTES], parse)


def list_groups(keys: Keys, task: str | None, cursor: str, look: int) -> Call[tuple[str, list[Group]]]:
    """-> (next cursor, "0" at the end; groups of ends that are no success, of this task or of all)."""

    def parse(reply: list[Any]) -> tuple[str, list[Group]]:
        return reply[0].decode(), [one for field, row in pairs(reply[1:]) if (one := end_groups.decode(field, row))]

    return Call(script("list_groups"), [keys.groups], [task or "", cursor, look], parse)


@dataclass(frozen=True, slots=True)
class Child:
    """A job below a root. `letter` as in EndLetter, `o`: it had not ended; `at_ms`: of its end, or of its submit."""

    job_id: str
    letter: str
    at_ms: int
    parent_id: str


def read_flow(keys: Keys, root_id: str, cursor: str, look: int) -> Call[tuple[str, list[Child]]]:
    """-> (next cursor, "0" at the end; a part of the jobs below a root). Rows that can't be read are left out."""

    def parse(reply: list[Any]) -> tuple[str, list[Child]]:
        found: list[Child] = []
        for job_id, row in pairs(reply[1:]):
            letter, _, rest = lenient(row).partition(" ")
            at_ms, space, parent_id = rest.partition(" ")
            if space and at_ms.isdecimal() and len(at_ms) < 16 and ids.is_id(lenient(job_id)):
                found.append(Child(lenient(job_id), letter, int(at_ms), parent_id))
        return reply[0].decode(), found

    return Call(script("read_flow"), [keys.flow(root_id)], [cursor, look], parse)


def job_states(keys: Keys, job_ids: Sequence[str]) -> Call[list[JobStatus | None]]:
    """How each of at most MOST_HELD jobs stands; None: nothing is known of it."""
    words: list[str] = []
    for job_id in job_ids:
        parsed = ids.parse(job_id)
        words += (job_id, parsed.task, parsed.born, parsed.entry_id)
    known = {status.value: status for status in JobStatus}
    return Call(
        script("job_states"),
        [keys.where, keys.delayed, keys.dead],
        [keys.stream_prefix, keys.result_prefix, *words],
        lambda reply: [known.get(word.decode()) for word in reply],
    )


@dataclass(frozen=True, slots=True)
class DeadCount:
    """Dead letters of one task and group; `group` "": of an older version. `job_id` is the newest."""

    task: str
    group: str
    count: int
    last_ms: int
    job_id: str


def count_dead(keys: Keys, cursor: str, look: int) -> Call[tuple[str, list[DeadCount]]]:
    """-> (next cursor, "0" at the end; counts of the part that was looked at)."""

    def parse(reply: list[Any]) -> tuple[str, list[DeadCount]]:
        return reply[0].decode(), [
            DeadCount(lenient(task), lenient(group), count, int(last_ms), lenient(job_id))
            for task, group, count, last_ms, job_id in zip(*(reply[at::5] for at in range(1, 6)), strict=True)
        ]

    return Call(script("count_dead"), [keys.dead, keys.dead_jobs], [cursor, look], parse)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """One registered task. `stored` counts jobs in its lanes, `held` those of them that a consumer has."""

    name: str
    definition: dict[str, Any]
    limits: dict[str, Any] | None
    paused: bool
    stored: int
    held: int
    recent_ends: int
    stats: dict[str, int] = field(default_factory=dict[str, int])
    unreadable: str | None = None
    """Why its definition can't be read."""


TASKS_PAGE = 50
_COUNTERS = ("done", "failed", "dead", "cancelled", "retried", "crashes", "expired", "skipped")
"""Words of `Keys.stats`."""


def list_tasks(keys: Keys, now_ms: int) -> Calls[list[TaskFacts]]:
    """By name. `recent_ends` counts those of the current rate bucket and RATE_BUCKETS before it, by the caller's clock."""
    current = now_ms // 1000 // RATE_BUCKET_S * RATE_BUCKET_S
    buckets = [f"{keys.rate_prefix}{current - RATE_BUCKET_S * back}" for back in range(RATE_BUCKETS + 1)]
    found: dict[str, TaskFacts] = {}
    cursor = b"0"
    while True:
        cursor, *rows = yield Call(
            script("list_tasks"),
            [keys.tasks, keys.stats, keys.limits, keys.paused, *buckets],
            [keys.stream_prefix, cursor, TASKS_PAGE, *_COUNTERS],
            ident,
        )
        found |= {facts.name: facts for facts in map(_task_facts, rows)}
        if cursor == b"0":
            return [facts for _, facts in sorted(found.items())]


def _task_facts(row: list[Any]) -> TaskFacts:
    name, raw, limits, paused, stored, held, ends, *counts = row
    return TaskFacts(
        name=lenient(name),
        definition=_json(raw) or {},
        limits=_json(limits),
        paused=paused == 1,
        stored=stored,
        held=held,
        recent_ends=ends,
        stats={word: _number(count) or 0 for word, count in zip(_COUNTERS, counts, strict=True) if count is not None},
        unreadable=checkup.why_bad_row("tasks", name, raw) or (limits and checkup.why_bad_row("limits", name, limits)),
    )


def count_by_task(keys: Keys, *, dead: bool, cursor: str, look: int) -> Call[tuple[str, dict[str, int]]]:
    """-> (next cursor, "0" at the end; counts by task of the part that was looked at)."""

    def parse(reply: list[Any]) -> tuple[str, dict[str, int]]:
        return reply[0].decode(), {lenient(task): count for task, count in pairs(reply[1:])}

    return Call(script("count_by_task"), [keys.dead if dead else keys.delayed], [cursor, look], parse)


@dataclass(frozen=True, slots=True)
class Gates:
    """What may hold a queued job back.

    `ahead` counts the entries before it in its lane, None where they are more than could be counted from either end; `waiting` all in it.
    """

    server_us: int
    paused: bool
    limits: dict[str, Any] | None
    tat_us: float
    held: int
    ahead: int | None
    waiting: int
    consumers: list[dict[str, Any]]


def gates(keys: Keys, task: str, lane: str, entry_id: str) -> Call[Gates]:
    def parse(reply: list[Any]) -> Gates:
        server_us, paused, limits, tat_us, held, ahead, waiting, *records = reply
        consumers = [record for raw in records if (record := _json(raw)) is not None]
        return Gates(
            int(server_us),
            paused == 1,
            _json(limits),
            float(tat_us or 0),
            held,
            ahead if ahead >= 0 else None,
            waiting,
            consumers,
        )

    assert lane in LANE_LETTERS
    return Call(
        script("gates"),
        [keys.paused, keys.limits, keys.gcra, keys.leases, keys.consumers, keys.lingering, *keys.streams(task)],
        [task, lane, entry_id, MOST_JOBS, CALL_BYTES],
        parse,
    )


@dataclass(frozen=True, slots=True)
class CronFacts:
    """One known cron. `last_ms` is its newest tick that fired; None: it never did. `skipped` ticks found the one before unfinished."""

    name: str
    definition: dict[str, Any]
    last_ms: int | None
    skipped: int
    paused: bool
    cursor_ms: int | None = None
    """Its newest tick that fired or was skipped, or when it was first seen."""
    unreadable: str | None = None
    """Why its definition can't be read."""


CRONS_A_CALL = 200


def list_crons(keys: Keys) -> Calls[tuple[int, list[CronFacts]]]:
    """-> (server ms, crons by name)."""
    found: dict[str, CronFacts] = {}
    cursor = b"0"
    while True:
        cursor, server_ms, *flat = yield Call(
            script("list_crons"),
            [keys.crons, keys.fired, keys.stats, keys.paused, keys.cursors],
            [cursor, CRONS_A_CALL],
            ident,
        )
        for raw_name, definition, last, skipped, paused, moved in zip(*(flat[at::6] for at in range(6)), strict=True):
            facts = CronFacts(
                lenient(raw_name),
                _json(definition) or {},
                _number(last),
                _number(skipped) or 0,
                paused == 1,
                int(moved) if (moved or b"").isdigit() else None,
                checkup.why_bad_row("crons", raw_name, definition),
            )
            found[facts.name] = facts
        if cursor == b"0":
            return server_ms, [facts for _, facts in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """One consumer. `lease_ms`: until when its lease holds (server ms); None: it has none, or is being reaped."""

    name: str
    record: dict[str, Any]
    lease_ms: int | None


def list_consumers(keys: Keys, cursor: str, look: int) -> Call[tuple[str, int, list[ConsumerFacts]]]:
    """-> (next cursor, "0" at the end; server ms; a part of the consumers). Rows that can't be read are left out."""

    def parse(reply: list[Any]) -> tuple[str, int, list[ConsumerFacts]]:
        found: list[ConsumerFacts] = []
        for at in range(2, len(reply), 3):
            record, lease = readable(reply[at + 1]), float(reply[at + 2])
            if record is not None:
                found.append(
                    ConsumerFacts(reply[at].decode("utf-8", "replace"), record, int(lease) if lease >= 0 else None)
                )
        return reply[0].decode(), reply[1], found

    return Call(script("list_consumers"), [keys.consumers, keys.leases, keys.graves], [cursor, look], parse)
