"""Calls of a job's holder, each fenced by the entry id: fetch, finish, retry, hand_back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from upnext.core import end_groups, entry, own_options
from upnext.core.keys import LANE_LETTERS, Keys
from upnext.core.lanes import Lane
from upnext.core.outcome import EndLetter, JobStatus
from upnext.engine.redis.scripts import Arg, Call, ident, script, text

RATE_BUCKET_S = 10


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one fetch gave. `entries` are (task, lane letter, [[entry id, [field, value, …]], …]) in the order of the reply.

    `largest`: how large the jobs of a task with more of them may be, bytes. `problem` is the broker's error reply about a task that could
    not be read, while others could.
    """

    server_ms: int
    retry_after_ms: int | None
    held_back: bool
    largest: int
    entries: list[tuple[str, str, list[Any]]]
    problem: str | None = None


def fetch(
    keys: Keys,
    epoch: str,
    consumer: str,
    tasks: Sequence[str],
    *,
    budget: int,
    suspect: bool = False,
    lanes: Sequence[str],
    most_limited: int,
) -> Call[Fetched]:
    """Up to `budget` jobs of `tasks`, in this order, `lanes`: for each up to three letters; or one `suspect`, nothing else."""

    def parse(reply: list[Any]) -> Fetched:
        problem = None
        if len(reply) > 4 and reply[-3] == 0:
            problem = text(reply[-1])
            reply = reply[:-3]
        entries = [(tasks[int(reply[at]) - 1], reply[at + 1].decode(), reply[at + 2]) for at in range(4, len(reply), 3)]
        return Fetched(reply[0], reply[1] if reply[1] >= 0 else None, reply[2] == 1, reply[3], entries, problem)

    streams = [stream for task in tasks for stream in keys.streams(task)]
    return Call(
        script("fetch"),
        [keys.epoch, keys.leases, keys.paused, keys.limits, keys.gcra, keys.lingering, keys.large, *streams],
        [epoch, consumer, budget, int(suspect), "".join(order.ljust(3, "-") for order in lanes), most_limited, *tasks],
        parse,
    )


LETTERS = {status: EndLetter[status.name] for status in JobStatus if status.name in EndLetter.__members__}


@dataclass(slots=True)
class Finish:
    """One job's end. `meta` is what its entry holds, `job_id` set there when it moved; `bury` keeps it as a dead letter.

    `cache`: the key under which the outcome is to be found by later jobs, and for how many ms.
    """

    task: str
    lane: str
    entry_id: bytes
    status: JobStatus
    outcome: bytes
    meta: entry.Meta | None = None
    bury: bool = False
    cache: tuple[str, int] | None = None
    letter_bytes: int = 0
    """About how large the dead letter is."""
    notes: bytes | None = None
    """What the job has noted, JSON, for its dead letter; b"": something, which the broker has; None: nothing."""
    ran: tuple[int, int] | None = None
    """From when to when its last attempt ran, Unix ms by this host's clock; None: it did not run, or its outcome says it."""


def _extra(job: Finish) -> bytes:
    meta = job.meta
    extra: dict[str, Any] = {}
    if meta is not None:
        if meta.job_id is not None:
            extra["i"] = meta.job_id
        if meta.reply_to is not None:
            extra["w"] = meta.reply_to
        if meta.idempotency_key is not None:
            extra["k"] = meta.idempotency_key
        if meta.lane is not None:
            extra["l"] = meta.lane
        if meta.root_id is not None:
            extra["p"], extra["r"] = meta.parent_id, meta.root_id
        ttl_ms = own_options.result_ttl_ms(meta.own)
        if ttl_ms is not None:
            extra["ttl"] = ttl_ms
    if job.notes is not None:
        extra["n"] = (job.bury and job.notes.decode()) or True
    if job.cache is not None:
        extra["cache"], extra["cache_ttl"] = job.cache
    group = None
    record: dict[str, Any] | None = None
    if job.status is not JobStatus.DONE:
        record = orjson.loads(job.outcome)
        assert record is not None
        group, about = end_groups.of_outcome(record)
        extra["g"], extra["about"] = group, orjson.dumps(end_groups.encode_about(about)).decode()
    if job.bury:
        extra["bury"] = True
        kept = entry.Meta() if meta is None else meta
        extra["dead"] = entry.encode_meta(
            entry.Meta(
                attempt=kept.attempt,
                crashes=kept.crashes,
                lost_hosts=kept.lost_hosts,
                parent_id=kept.parent_id,
                root_id=kept.root_id,
                cause=kept.cause,
                tick_ms=kept.tick_ms,
                own=kept.own,
                group=group,
                outcome=record,
            )
        ).decode()
    return orjson.dumps(extra)


def finish(
    keys: Keys,
    epoch: str,
    jobs: Sequence[Finish],
    result_ttl_ms: Mapping[str, int],
    now_ms: int,
    some: list[Finish] | None = None,
) -> Call[list[Finish]]:
    """-> the jobs that another owner has by now; nothing was written for those.

    `some` gets one job of each task and lane, and each job of which there is more to say than its outcome.
    """
    streams: dict[tuple[str, str], int] = {}
    plain: dict[tuple[int, JobStatus], list[Finish]] = {}
    special: list[tuple[int, Finish]] = []
    done = JobStatus.DONE  # looked up once: this is the hot path
    for job in jobs:
        where = (job.task, job.lane)
        index = streams.get(where)
        if index is None:
            index = streams[where] = len(streams) + 1
        if job.meta is None and job.status is done and not job.bury and job.cache is None and job.notes is None:
            group = plain.get((index, job.status))
            if group is None:
                group = plain[index, job.status] = []
            group.append(job)
        else:
            special.append((index, job))
    words: list[Arg] = []
    order: list[Finish] = []
    for (index, status), group in plain.items():
        words += ("p", index, LETTERS[status], len(group))
        for job in group:
            words += (job.entry_id, job.outcome)
        order += group
    for index, job in special:
        words += ("s", index, LETTERS[job.status], job.entry_id, job.outcome, _extra(job))
        order.append(job)
    if some is not None:
        some += [group[-1] for group in plain.values()]
        some += [job for _, job in special]
    task_args: list[Arg] = []
    for task, lane in streams:
        task_args += (task, lane, result_ttl_ms[task])
    bucket = now_ms // 1000 // RATE_BUCKET_S * RATE_BUCKET_S
    return Call(
        script("finish"),
        [
            keys.epoch,
            *keys.of_an_end,
            f"{keys.rate_prefix}{bucket}",
            keys.ends,
            keys.limits,
            *(keys.stream(task, lane) for task, lane in streams),
        ],
        [
            epoch,
            keys.result_prefix,
            keys.idem_prefix,
            keys.reply_prefix,
            keys.bell,
            now_ms,
            keys.cache_prefix,
            keys.done_prefix,
            *task_args,
            *words,
        ],
        lambda reply: [order[position - 1] for position in reply],
    )


_FINISH_KEYS, _FINISH_ARGS = 16, 8
"""What a call of finish has before its streams."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One end that the broker had confirmed. `letter` as in LETTERS; `extra`: as finish takes it."""

    task: str
    lane: str
    entry_id: bytes
    letter: str
    outcome: bytes
    extra: bytes

    @property
    def job_id(self) -> str:
        moved = orjson.loads(self.extra).get("i")
        return moved if moved is not None else f"{self.task}:{self.lane}{self.entry_id.decode()}"


def ended_in(call: Call[list[Finish]], stale: Collection[bytes]) -> list[Ended]:
    """The ends that a call of `finish` held, less those of `stale` entries. From its arguments: nothing else of them is kept."""
    args: Sequence[Any] = call.args
    task_args = [args[at : at + 2] for at in range(_FINISH_ARGS, _FINISH_ARGS + 3 * (len(call.keys) - _FINISH_KEYS), 3)]
    at = _FINISH_ARGS + 3 * len(task_args)
    found: list[Ended] = []
    while at < len(args):
        kind, index, letter = args[at : at + 3]
        task, lane = task_args[index - 1]
        if kind == "p":
            stop = at + 4 + 2 * args[at + 3]
            rows = zip(args[at + 4 : stop : 2], args[at + 5 : stop : 2], strict=True)
            found += [Ended(task, lane, entry_id, letter, outcome, b"{}") for entry_id, outcome in rows]
        else:
            stop = at + 6
            found.append(Ended(task, lane, args[at + 3], letter, args[at + 4], args[at + 5]))
        at = stop
    return [end for end in found if end.entry_id not in stale]


def finish_again(keys: Keys, epoch: str, ends: Sequence[Ended], result_ttl_ms: Mapping[str, int]) -> Call[int]:
    """After the broker went back in time. -> how many of these jobs were there again, and are ended now."""
    tasks: dict[str, int] = {}
    words: list[Arg] = []
    for end in ends:
        index = tasks.setdefault(end.task, len(tasks) + 1)
        where = f"{end.lane} {end.entry_id.decode()}"
        words += (index, end.letter, where, end.job_id, end.outcome, end.extra)
    task_args: list[Arg] = []
    for task in tasks:
        task_args += (task, result_ttl_ms[task])
    return Call(
        script("finish_again"),
        [
            keys.epoch,
            *keys.of_an_end,
            keys.delayed,
            keys.delayed_jobs,
            keys.ends,
            *(stream for task in tasks for stream in keys.streams(task)),
        ],
        [epoch, keys.result_prefix, keys.idem_prefix, keys.reply_prefix, len(tasks), *task_args, *words],
        int,
    )


@dataclass(slots=True)
class PutBack:
    """One failed attempt that is to run again. `meta` is that of the next attempt."""

    task: str
    lane: str
    entry_id: bytes
    job_id: str
    home_lane: str
    meta: entry.Meta
    delay_ms: int
    notes: bytes = b""
    """What this attempt has noted, JSON."""


RETRIED, STALE, CANCELLED = 1, 0, 2


def retry(keys: Keys, epoch: str, jobs: Sequence[PutBack]) -> Call[list[int]]:
    """-> for each (of at most about 1 MiB) RETRIED, STALE (another owner has it) or CANCELLED (finish it as cancelled)."""
    streams: dict[tuple[str, str], int] = {}
    words: list[Arg] = []
    for job in jobs:
        index = streams.setdefault((job.task, job.lane), len(streams) + 1)
        words += (index, job.entry_id, job.job_id, job.home_lane, entry.encode_meta(job.meta), job.delay_ms, job.notes)
    return Call(
        script("retry"),
        [
            keys.epoch,
            keys.where,
            keys.delayed,
            keys.delayed_jobs,
            keys.cancel,
            keys.stats,
            keys.limits,
            keys.notes,
            *(keys.stream(task, lane) for task, lane in streams),
        ],
        [epoch, keys.bell, *(task for task, _ in streams), *words],
        ident,
    )


def note(keys: Keys, task: str, lane: str, entry_id: bytes, job_id: str, notes: bytes) -> Call[bool]:
    """Keep what a running job notes, in place of what it had noted before. -> whether it is still this holder's."""
    return Call(
        script("note"),
        [keys.stream(task, lane), keys.notes],
        [entry_id, job_id, notes],
        lambda reply: reply == 1,
    )


def hand_back(keys: Keys, epoch: str, jobs: Sequence[tuple[str, str, bytes]]) -> Call[tuple[int, int]]:
    """Jobs as (task, lane letter, entry id). -> (how many were still ours, how many were looked at: call again for the rest)."""
    pairs: dict[tuple[str, str], int] = {}
    words: list[Arg] = []
    for task, lane, entry_id in jobs:
        words += (pairs.setdefault((task, lane), len(pairs) + 1), entry_id)
    streams: list[str] = []
    for task, lane in pairs:
        streams += (keys.stream(task, lane), keys.stream(task, Lane.BACK))
    return Call(
        script("hand_back"),
        [
            keys.epoch,
            *keys.of_an_end,
            keys.tasks,
            *streams,
        ],
        [
            epoch,
            keys.bell,
            keys.result_prefix,
            keys.idem_prefix,
            keys.reply_prefix,
            *(task for task, _ in pairs),
            *words,
        ],
        lambda reply: (reply[0], reply[1]),
    )


PENDING_TASKS = 200
"""That one call of `own_pending` names."""


def own_pending(
    keys: Keys, epoch: str, consumer: str, tasks: Sequence[str], most: int = 10_000
) -> Call[list[tuple[str, str, bytes]]]:
    """-> what the broker believes this consumer holds: (task, lane letter, entry id)."""
    lanes = [(task, lane) for task in tasks for lane in LANE_LETTERS]

    def parse(reply: list[Any]) -> list[tuple[str, str, bytes]]:
        return [(*lanes[position - 1], entry_id) for position, entry_id in zip(reply[::2], reply[1::2], strict=True)]

    return Call(
        script("own_pending"),
        [keys.epoch, *(keys.stream(task, lane) for task, lane in lanes)],
        [epoch, consumer, most],
        parse,
    )
