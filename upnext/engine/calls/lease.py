"""Calls that keep consumers and the delayed set in order: register, beat, promote, tick, reap, linger."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from upnext.core.batches import CALL_BYTES, batches
from upnext.core.entry import Meta, encode_meta
from upnext.core.keys import SCHEMA, Keys
from upnext.core.lanes import Lane
from upnext.core.naming import stem_of
from upnext.core.ownership import Source
from upnext.core.schedules import ScheduleSpec
from upnext.core.spec import STEPPED_BACK_MS, CronSpec, TaskKind, TaskSpec
from upnext.engine.calls.rows import name, names, pairs
from upnext.engine.redis.scripts import Arg, Call, Calls, script, text

MOST_LOST_HOSTS = 10


@dataclass(frozen=True, slots=True)
class Registration:
    """What register needs. `record` is the consumer's, as in `upnext.core.keys`.

    provisional: this code is being tried: what it declares anew is made known, what others declared is left as it is, and its crons and
    handlers wait until it is committed. `source`: where the code is from.
    """

    consumer: str
    record: Mapping[str, Any]
    service: str
    generation_ms: int
    lease_ms: int
    tasks: Sequence[TaskSpec]
    provisional: bool = False
    source: Source = field(default_factory=Source)


def definition(task: TaskSpec, service: str, generation_ms: int, source: Source) -> dict[str, Any]:
    """What Redis keeps about a task.

    Its service is its `owner`: versions that named services otherwise read and compare `service`, and would take what isn't theirs.
    """
    options = task.options
    return {
        **_origin(service, generation_ms, source),
        "kind": task.kind.value,
        "event": task.event,
        "signature": task.arguments.describe(),
        "shared": options.shared,
        **({"redact": options.redact} if options.redact else {}),
        "options": {
            "retries": options.retries,
            "timeout_s": options.timeout_s,
            "max_crashes": options.max_crashes,
            "result_ttl_s": options.result_ttl_s,
            "priority": options.priority,
        },
        "limits": limits(task),
    }


def _origin(service: str, generation_ms: int, source: Source) -> dict[str, Any]:
    record: dict[str, Any] = {
        "owner": service,
        "generation_ms": generation_ms,
        "daemon": source.daemon if source.returns else None,
        "host": source.host,
        "file": source.file,
    }
    return {**record, "passing": True} if source.passing else record


def limits(task: TaskSpec) -> dict[str, Any] | None:
    options = task.options
    if not options.limited:
        return None
    record: dict[str, Any] = {}
    if options.rate_limit is not None:
        record["rate"] = options.rate_limit.count
        record["period_s"] = options.rate_limit.period_s
        if options.rate_limit.burst is not None:
            record["burst"] = options.rate_limit.burst
    if options.max_concurrency is not None:
        record["concurrency"] = options.max_concurrency
    return record


PART_TASKS = 100
PART_BYTES = 64 * 1024
"""A definition is read, compared and written: it takes the server longer than a job of its size."""


def register_by_parts(keys: Keys, registration: Registration, new_epoch: str) -> Calls[tuple[str, int]]:
    """Register any number of tasks -> (epoch, server ms). Error codes SCHEMA and CONFLICT come as ReplyError.

    Nothing is written before all parts were looked at. The consumer is known from the first part on: what it serves stays from then on, and
    a service that clashes with it is refused.
    """
    parts = list(batches(registration.tasks, lambda task: _size(task, registration), PART_TASKS, PART_BYTES)) or [()]
    while True:
        for part in parts if len(parts) > 1 else ():
            yield register(keys, replace(registration, consumer="", tasks=part), new_epoch, only_look=True)
        epoch, server_ms = yield register(keys, replace(registration, tasks=parts[0]), new_epoch)
        epochs = {epoch}
        for part in parts[1:]:
            epoch, server_ms = yield register(keys, replace(registration, consumer="", tasks=part), new_epoch)
            epochs.add(epoch)
        if len(epochs) == 1:
            return epoch, server_ms
        # the data set was replaced meanwhile: the first parts are not in this one


def _size(task: TaskSpec, registration: Registration) -> int:
    return len(orjson.dumps(definition(task, registration.service, 0, registration.source)))


def register(
    keys: Keys, registration: Registration, new_epoch: str, *, only_look: bool = False
) -> Call[tuple[str, int]]:
    """One part -> (epoch, server ms). only_look: write nothing; the epoch is "" where none is set."""
    task_args: list[Arg] = []
    streams: list[str] = []
    crons: list[Arg] = []
    handlers: list[str] = []
    events: list[str] = []
    generation_ms = 0 if registration.provisional else registration.generation_ms
    for task in registration.tasks:
        limit = limits(task)
        task_args += (
            task.name,
            orjson.dumps(definition(task, registration.service, generation_ms, registration.source)),
            orjson.dumps(limit) if limit else b"",
        )
        streams += keys.streams(task.name)
        if registration.provisional:
            continue
        if task.kind is TaskKind.CRON and task.cron is not None:
            crons += (task.name, orjson.dumps(_cron_row(task.name, task.cron, registration)))
        if task.event is not None:
            handlers.append(task.name)
            events.append(keys.event(task.event))
    return Call(
        script("register"),
        [
            keys.epoch,
            keys.schema,
            keys.tasks,
            keys.limits,
            keys.consumers,
            keys.leases,
            keys.crons,
            keys.cursors,
            keys.seen,
            keys.lapsed,
            keys.limits_set,
            keys.announcers,
            keys.announced,
            *streams,
            *events,
        ],
        [
            new_epoch,
            SCHEMA,
            registration.consumer,
            orjson.dumps(dict(registration.record)) if registration.consumer else b"",
            registration.lease_ms,
            registration.service,
            generation_ms,
            registration.source.daemon,
            _stem(registration),
            int(registration.source.passing),
            len(registration.tasks),
            len(crons) // 2,
            len(handlers),
            keys.bell,
            int(only_look),
            *task_args,
            *crons,
            *handlers,
        ],
        lambda reply: (text(reply[0]), reply[1]),
    )


def _cron_row(task: str, cron: CronSpec, registration: Registration) -> dict[str, Any]:
    return {
        "task": task,
        "schedule": cron.schedule,
        "timezone": cron.timezone,
        "missed": cron.missed.value,
        "max_catch_up_s": cron.max_catch_up_s,
        **({} if cron.overlap else {"overlap": False}),
        **({} if cron.payload == b"{}" else {"payload": cron.payload.decode()}),
        **_origin(registration.service, registration.generation_ms, registration.source),
    }


def _stem(registration: Registration) -> str:
    file = registration.source.file
    return stem_of(registration.service) if file is None else file.rpartition("/")[2].removesuffix(".py")


def define(
    keys: Keys, epoch: str, *, service: str, generation_ms: int, tasks: Sequence[TaskSpec], source: Source
) -> Calls[tuple[str, int]]:
    """Register definitions without a consumer: those of code that was just committed."""
    return register_by_parts(keys, Registration("", {}, service, generation_ms, 0, tasks, source=source), epoch)


@dataclass(frozen=True, slots=True)
class Beat:
    """`missing` consumers were reaped; `graves` are dead and should be gone by now.

    leases: of all consumers, with their ends as Redis writes them. leadership: its term and end. Both are for comparing only.
    watched: daemons are looked at now.
    """

    server_ms: int
    leads: bool
    term: int
    next_due_ms: int | None
    leadership: str
    watched: bool
    missing: list[str]
    graves: list[str]
    leases: dict[str, str]


def beat(
    keys: Keys,
    epoch: str,
    *,
    daemon: str,
    token: str,
    lease_ms: int,
    leadership_ms: int,
    consumers: Sequence[str],
    ended_leadership: str = "",
) -> Call[Beat]:
    """ended_leadership: `leadership` of earlier beats, unchanged for so long that it has ended; taken if it is unchanged still."""

    def parse(reply: list[Any]) -> Beat:
        due = reply[3] if reply[3] >= 0 else None
        missing_end = 7 + reply[6]
        graves_at = missing_end + 1
        graves_end = graves_at + reply[missing_end]
        missing, graves, leases = reply[7:missing_end], reply[graves_at:graves_end], reply[graves_end:]
        return Beat(
            reply[0],
            reply[1] == 1,
            reply[2],
            due,
            text(reply[4]),
            reply[5] == 1,
            names(missing, keys.leases, "ZREM"),
            names(graves, keys.graves, "ZREM"),
            {
                consumer: text(end)
                for raw, end in pairs(leases)
                if (consumer := name(raw, keys.leases, "ZREM")) is not None
            },
        )

    return Call(
        script("beat"),
        [keys.epoch, keys.leases, keys.leader, keys.delayed, keys.graves, keys.watched],
        [epoch, daemon, token, lease_ms, leadership_ms, ended_leadership, *consumers],
        parse,
    )


def resign(keys: Keys, epoch: str, *, daemon: str, token: str) -> Call[bool]:
    """-> whether this scheduler led until now."""
    return Call(script("resign"), [keys.epoch, keys.leader], [epoch, daemon, token], bool)


@dataclass(frozen=True, slots=True)
class Promoted:
    """`next_us` is how long until the next is due. `put_off` are jobs whose lane took nothing, each with its error reply."""

    count: int
    next_us: int | None
    put_off: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def promote(keys: Keys, epoch: str, most: int) -> Call[Promoted]:
    def parse(reply: list[Any]) -> Promoted:
        put_off = list(zip(map(text, reply[2::2]), map(text, reply[3::2]), strict=True))
        return Promoted(reply[0], reply[1] if reply[1] >= 0 else None, put_off)

    return Call(
        script("promote"),
        [keys.epoch, keys.delayed, keys.delayed_jobs, keys.where, keys.limits],
        [epoch, keys.stream_prefix, keys.bell, most, CALL_BYTES],
        parse,
    )


FIRED, PASSED, EARLY, GONE, HELD, PAUSED, UNKNOWN = 1, 2, 3, 4, 5, 6, 7
HOLDER_TTL_MS = 30 * 86_400_000
"""A tick's job that is lost without an end holds up the next ones for so long at most. Every end frees them."""


def tick(
    keys: Keys,
    epoch: str,
    *,
    term: int,
    cron: str,
    tick_ms: int,
    payload: bytes,
    meta: Meta,
    fire: bool,
    overlap: bool = True,
    schedule: tuple[ScheduleSpec, bytes] | None = None,
) -> Call[tuple[int, int | str]]:
    """schedule: made at run time under the name `cron`, with its row as it was read; its jobs have the arguments that are kept beside it.

    -> (FIRED, entry id) · (PASSED, cursor ms) · (EARLY, ms to wait) · (GONE, 0) · (HELD, job of an earlier tick) · (PAUSED, 0) ·
    (UNKNOWN, 0): the schedule's task is not registered.
    """
    if schedule is None:
        task, lane, row, holder = cron, Lane.NORMAL.value, b"", f"tick@{cron}"
        rows, cursors, fired, counts = keys.crons, keys.cursors, keys.fired, keys.stats
        fired_field, skipped_field = cron, f"{cron}:skipped"
    else:
        spec, row = schedule
        task, lane, holder = (
            spec.task,
            spec.lane,
            f"schedule {cron}",
        )  # no key of a job begins so: its task has no space
        rows, cursors, fired, counts = keys.schedules, *[keys.schedules_state] * 3
        fired_field, skipped_field = f"{cron} fired", f"{cron} skipped"
    key = "" if overlap else holder
    packed_meta = encode_meta(replace(meta, idempotency_key=key or None))
    return Call(
        script("tick"),
        [
            keys.epoch,
            keys.leader,
            rows,
            cursors,
            keys.limits,
            keys.stream(task, lane),
            fired,
            counts,
            keys.paused,
            keys.schedules_arguments,
            keys.tasks,
            keys.large,
        ],
        [
            epoch,
            term,
            cron,
            tick_ms,
            payload,
            packed_meta,
            keys.bell,
            int(fire),
            STEPPED_BACK_MS,
            keys.idem_prefix,
            key,
            HOLDER_TTL_MS,
            task,
            lane,
            row,
            fired_field,
            skipped_field,
        ],
        lambda reply: (reply[0], text(reply[1]) if reply[0] in {FIRED, HELD} else reply[1]),
    )


@dataclass(frozen=True, slots=True)
class Reaped:
    """`pending` -1: its lease has changed, nothing was done. `apart` of the moved are suspects, `shown` crashes whose culprit is known.

    `problem`: why some of its entries could not be moved.
    """

    moved: int
    pending: int
    gone: bool
    buried: int
    apart: int
    shown: tuple[str, ...]
    problem: str = ""


REAP_TASKS = 200


def reap_parts(tasks: Sequence[str]) -> deque[Sequence[str]]:
    """The tasks that calls of `reap` name one after another, each until nothing of it is pending; at least one part."""
    return deque(tasks[start : start + REAP_TASKS] for start in range(0, max(1, len(tasks)), REAP_TASKS))


def reap(
    keys: Keys,
    epoch: str,
    *,
    consumer: str,
    tasks: Sequence[str],
    seen: str = "",
    final: bool,
    more: bool = False,
    charge: str = "none",
    cause: str = "",
    detail: str = "",
    started: Sequence[tuple[str, str, str]] = (),
    crash: str = "",
    suspects: int | None = None,
) -> Call[Reaped]:
    """`started` are (task, lane letter, entry id); `charge` is none, crash or host. more: other parts of its tasks follow (`reap_parts`).

    seen: only while its lease is still that (as in `Beat.leases`), or gone. "": whatever its lease is.
    One process may have held several consumers: `crash` names its end, `suspects` counts what had started in all of them. Without, this
    consumer was the only one.
    """
    streams = [stream for task in tasks for stream in keys.streams(task)]
    return Call(
        script("reap"),
        [
            keys.epoch,
            keys.leases,
            keys.graves,
            keys.consumers,
            *keys.of_an_end,
            keys.tasks,
            keys.lingering,
            *streams,
        ],
        [
            epoch,
            consumer,
            seen,
            (2 if more else 1) if final else 0,
            charge,
            cause,
            detail,
            keys.result_prefix,
            keys.idem_prefix,
            keys.reply_prefix,
            keys.bell,
            MOST_LOST_HOSTS,
            len(tasks),
            *tasks,
            crash or consumer,
            len(started) if suspects is None else suspects,
            *(f"{task}:{lane} {entry_id}" for task, lane, entry_id in started),
        ],
        lambda reply: Reaped(
            reply[0],
            reply[1],
            reply[2] == 1,
            reply[3],
            reply[4],
            tuple(text(name) for name in reply[6:]),
            text(reply[5]),
        ),
    )


def waiting_suspects(keys: Keys, tasks: Sequence[str]) -> Call[int]:
    """-> how many suspects of these tasks wait to be run alone; those of paused tasks are not counted."""
    return Call(
        script("waiting_suspects"),
        [keys.paused, *(keys.stream(task, Lane.SUSPECT) for task in tasks)],
        list(tasks),
        int,
    )


MOST_FREED = 100
MOST_FREED_BYTES = 4 << 20


def free_suspects(keys: Keys, epoch: str, crash: str, task: str, after: str) -> Call[tuple[int, str | None]]:
    """Send suspects of that crash back to be run as any other job. -> (how many, where to go on, None at the end)."""
    return Call(
        script("free_suspects"),
        [keys.epoch, keys.where, keys.stream(task, Lane.SUSPECT), keys.stream(task, Lane.BACK)],
        [epoch, crash, after, MOST_FREED, MOST_FREED_BYTES, keys.bell],
        lambda reply: (reply[0], text(reply[1]) or None),
    )


def attach(keys: Keys, epoch: str, consumer: str, client_id: int) -> Call[int]:
    """Raises ReapedError for a consumer without record or lease."""
    return Call(script("attach"), [keys.epoch, keys.consumers, keys.leases], [epoch, consumer, client_id], int)


@dataclass(frozen=True, slots=True)
class Unowned:
    """What a part of a sweep over the groups found. `looked_at` is how many of the streams it came through, in their order."""

    looked_at: int
    consumers: list[tuple[int, str]]


def unowned_consumers(keys: Keys, epoch: str, streams: Sequence[str], most: int) -> Call[Unowned]:
    """-> consumers of the streams' groups with neither lease nor grave, as (index of the stream, consumer)."""

    def parse(reply: list[Any]) -> Unowned:
        found = [
            (at - 1, consumer)
            for at, raw in pairs(reply[1:])
            if (consumer := name(raw, "the groups of the lanes", "XGROUP DELCONSUMER")) is not None
        ]
        return Unowned(reply[0], found)

    return Call(script("unowned_consumers"), [keys.epoch, keys.leases, keys.graves, *streams], [epoch, most], parse)


def linger(keys: Keys, epoch: str, consumer: str, task: str, count: int) -> Call[bool]:
    """-> whether the consumer still has a lease."""
    return Call(
        script("linger"), [keys.epoch, keys.leases, keys.lingering], [epoch, consumer, task, count, keys.bell], bool
    )
