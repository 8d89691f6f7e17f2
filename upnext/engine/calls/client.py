"""Calls of producers and waiters: submit, replace, send, watch, unwatch, cancel."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from upnext.core import entry, ids, outcome
from upnext.core.batches import CALL_BYTES, LARGE_BYTES
from upnext.core.entry import META_FIELD, PAYLOAD_FIELD
from upnext.core.keys import Keys
from upnext.core.lanes import Lane
from upnext.core.outcome import Outcome
from upnext.core.submission import Submission
from upnext.engine.redis.connection import form, pack_command
from upnext.engine.redis.scripts import Arg, Call, script

HANDLER_LIFE_MS = 7 * 24 * 3600 * 1000
"""A handler not seen by any scheduler for so long gets no more events."""

SENT_LIFE_MS = 60_000
"""A submit whose reply was lost is repeated for a shorter time than this."""


@dataclass(frozen=True, slots=True)
class Held:
    """Instead of an id: the idempotency key is held by this job. `nonce` tells the submit that took it."""

    job_id: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Instead of an id: the lane takes nothing, as `text` says. The others of the same call are queued."""

    text: str


Answer = str | Held | Refused
"""What a submit gives for one job: its id, who holds its key, or why it is not queued."""


def scoped(task: str, key: str) -> str:
    """A key counts within its task: two tasks may use `order-1`."""
    return f"{task}:{key}"


def _meta(job: Submission, reply_to: str | None) -> bytes:
    if not (job.parent_id or job.idempotency_key or reply_to or job.trace or job.own):
        return b""
    return entry.encode_meta(
        entry.Meta(
            parent_id=job.parent_id,
            root_id=job.root_id,
            idempotency_key=job.idempotency_key and scoped(job.task, job.idempotency_key),
            reply_to=reply_to,
            trace=job.trace,
            own=job.own,
        )
    )


def _special(keys: Keys, job: Submission, nonce: str) -> bytes:
    if job.delay_s is None and job.at_us is None and job.queue_ttl_s is None and job.idempotency_key is None:
        return b""
    wish: dict[str, Any] = {}
    if job.at_us is not None:
        wish["at"] = job.at_us
    elif job.delay_s is not None:
        wish["delay"] = max(0, math.ceil(job.delay_s * 1_000_000))
    if job.queue_ttl_s is not None:
        wish["ttl"] = max(1, round(job.queue_ttl_s * 1000))
    if job.idempotency_key is not None:
        wish["key"] = scoped(job.task, job.idempotency_key)
        wish["key_ttl"] = max(1, round(job.idempotency_ttl_s * 1000))
        wish["nonce"] = nonce
        wish["sent"] = keys.sent(nonce, wish["key"])
        wish["sent_ttl"] = SENT_LIFE_MS
    return orjson.dumps(wish)


def plain(keys: Keys, job: Submission, reply_to: str | None) -> bytes | None:
    """The XADD, encoded, where it is all that submitting takes; None: the script.

    That takes what is large, limited, delayed, keyed, has a queue_ttl, or is the child of a job.
    """
    if job.limited or job.root_id or len(job.payload) > LARGE_BYTES or _special(keys, job, ""):
        return None
    payload, meta = job.payload, _meta(job, reply_to)
    stream = keys.stream(job.task, job.lane)
    if meta:
        return pack_command(("XADD", stream, "*", PAYLOAD_FIELD, payload, META_FIELD, meta))
    return _xadd(stream) % (len(payload), payload)


@functools.lru_cache(4096)
def _xadd(stream: str) -> bytes:
    return form("XADD", stream, "*", PAYLOAD_FIELD)


def _instead(reply: str) -> Held | Refused:
    if reply[0] == "!":
        return Refused(reply[1:])
    job_id, _, nonce = reply[1:].rpartition(" ")
    return Held(job_id, nonce)


def submit(keys: Keys, jobs: Sequence[tuple[Submission, str | None]], nonce: str | Sequence[str]) -> Call[list[Answer]]:
    """Jobs with the channel of their waiter (or None). -> for each its job id, or who holds its key.

    `nonce` tells this submit from others of the same key: one for all, or one for each.
    """
    nonces = [nonce] * len(jobs) if isinstance(nonce, str) else nonce
    streams: dict[tuple[str, str], int] = {}
    words: list[Arg] = []
    add = words.append
    for (job, reply_to), own in zip(jobs, nonces, strict=True):
        where = (job.task, job.lane)
        index = streams.get(where)
        if index is None:
            index = streams[where] = len(streams) + 1
        add(index)
        add(_meta(job, reply_to))
        add(job.payload)
        add(_special(keys, job, own))

    return Call(
        script("submit"),
        [
            keys.seq,
            keys.delayed,
            keys.delayed_jobs,
            keys.limits,
            keys.large,
            keys.flow_prefix,
            *(keys.stream(task, lane) for task, lane in streams),
        ],
        [keys.bell, keys.idem_prefix, *(task for task, _ in streams), *words],
        lambda reply: _answers([job for job, _ in jobs], reply),
    )


def _answers(jobs: Sequence[Submission], reply: list[bytes]) -> list[Answer]:
    done: list[Answer] = []
    for job, raw in zip(jobs, reply, strict=True):
        word = raw.decode()
        if word[0] in "=!":
            done.append(_instead(word))
        elif word[0] == "d":
            done.append(f"{job.task}:{word}")
        else:
            done.append(f"{job.task}:{job.lane}{word}")
    return done


def replace(keys: Keys, job: Submission, reply_to: str | None, nonce: str) -> Call[list[Answer]]:
    """A job with an idempotency key takes the place of the one that holds it, if no worker has fetched that yet. -> as `submit` of one."""
    return Call(
        script("replace"),
        [
            keys.seq,
            keys.delayed,
            keys.delayed_jobs,
            keys.limits,
            keys.large,
            keys.where,
            keys.waiters,
            keys.dead,
            keys.dead_jobs,
            keys.cancel,
            keys.stats,
            keys.notes,
            keys.dead_bytes,
            keys.tasks,
            keys.groups,
            keys.group_ids,
            keys.flow_prefix,
            keys.ended_prefix,
            *keys.streams(job.task),
        ],
        [
            keys.bell,
            keys.idem_prefix,
            keys.result_prefix,
            keys.reply_prefix,
            job.task,
            job.lane,
            _meta(job, reply_to),
            job.payload,
            _special(keys, job, nonce),
        ],
        lambda reply: _answers([job], reply),
    )


@dataclass(frozen=True, slots=True)
class Sent:
    """What one call of `send` gave: an answer for each handler that it came to, and the names of those it left."""

    answers: list[Answer]
    left: list[bytes]


MOST_HANDLERS = 200
"""That one call makes jobs for."""


def send(
    keys: Keys,
    event: str,
    payload: bytes,
    handlers: Sequence[str | bytes],
    *,
    meta: entry.Meta | None = None,
    idempotency_key: str | None = None,
    idempotency_ttl_s: float | None = None,
    nonce: str = "",
    goes_on: bool = False,
) -> Call[Sent]:
    """`handlers` that the sender knows, besides those that Redis does; goes_on: those that an earlier call of this `nonce` left alone.

    `meta` is every job's; `idempotency_ttl_s` None: a day. A call that can be repeated, having a key or going on, makes no job twice.
    """
    key = idempotency_key or ""
    args: list[Arg] = [
        entry.encode_meta(meta) if meta else b"",
        keys.stream_prefix,
        keys.bell,
        "" if goes_on else HANDLER_LIFE_MS,
        keys.idem_prefix,
        key,
        max(1, round((86400.0 if idempotency_ttl_s is None else idempotency_ttl_s) * 1000)),
        nonce,
        keys.sent(nonce, f"{key}@") if key or goes_on else "",
        SENT_LIFE_MS,
        MOST_HANDLERS,
        CALL_BYTES,
        *handlers,
        payload,
    ]
    return Call(script("send"), [keys.event(event), keys.limits, keys.large, keys.flow_prefix], args, sent)


def sent(reply: list[bytes]) -> Sent:
    done = Sent([], [])
    for task, raw in zip(reply[::2], reply[1::2], strict=True):
        word = raw.decode()
        if word == ">":
            done.left.append(task)
        else:
            id_ = f"{task.decode('utf-8', 'backslashreplace')}:n{word}"
            done.answers.append(_instead(word) if word[0] in "=!" else id_)
    return done


def plain_send(keys: Keys, event: str, payload: bytes, known_handlers: Sequence[str]) -> bytes:
    """`send` without a key, of who has no parent: the command, encoded. Its reply is for `sent`, or NoScriptError."""
    return _evalsha_send(keys.namespace, event, tuple(known_handlers)) % (len(payload), payload)


@functools.lru_cache(4096)
def _evalsha_send(namespace: str, event: str, known_handlers: tuple[str, ...]) -> bytes:
    *head, _payload = send(Keys(namespace), event, b"", known_handlers).evalsha()
    return form(*head)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands: `outcome` when it ended, else whether the broker knows it."""

    known: bool
    outcome: Outcome | None = None


def watch(keys: Keys, job_id: str, channel: str, number: int = 0) -> Call[Standing]:
    """Register `channel` for the job's end unless it has ended or is unknown; '' only asks.

    `number` rises with each registration of a channel: an `unwatch` of an older one leaves this one alone.
    """
    parsed = ids.parse(job_id)
    born = parsed.born if parsed.born != "d" else Lane.NORMAL

    def parse(reply: list[bytes]) -> Standing:
        match reply:
            case [b"r", raw]:
                return Standing(True, outcome.decode(raw))
            case [b"z", packed]:
                _, meta, _ = entry.unpack(packed)
                return Standing(True, outcome.from_dict(meta.outcome) if meta.outcome else None)
            case [b"w"]:
                return Standing(True)
            case _:
                return Standing(False)

    return Call(
        script("watch"),
        [
            keys.waiters,
            keys.result(job_id),
            keys.where,
            keys.delayed_jobs,
            keys.dead_jobs,
            keys.stream(parsed.task, born),
        ],
        [job_id, parsed.entry_id, channel, number],
        parse,
    )


def unwatch(keys: Keys, job_id: str, channel: str, number: int) -> Call[bool]:
    """Take the registrations of `channel` back up to the one of this number. -> whether there was one."""
    return Call(script("unwatch"), [keys.waiters], [job_id, channel, number], bool)


ENDED, ASKED = 1, 2


def cancel(keys: Keys, job_id: str) -> Call[int]:
    """-> ENDED (it will not run), ASKED (it runs, its worker was asked to end it), 0 (it has ended before, or is unknown)."""
    parsed = ids.parse(job_id)
    return Call(
        script("cancel"),
        [
            keys.where,
            keys.waiters,
            keys.dead,
            keys.dead_jobs,
            keys.cancel,
            keys.result(job_id),
            keys.delayed,
            keys.delayed_jobs,
            keys.tasks,
            keys.stats,
            keys.notes,
            keys.dead_bytes,
            keys.groups,
            keys.group_ids,
            keys.flow_prefix,
            keys.ended_prefix,
            *keys.streams(parsed.task),
        ],
        [
            job_id,
            parsed.task,
            parsed.born,
            parsed.entry_id,
            keys.result_prefix,
            keys.idem_prefix,
            keys.reply_prefix,
            keys.bell,
        ],
        int,
    )
