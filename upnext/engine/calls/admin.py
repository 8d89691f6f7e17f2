"""Calls of people who step in: pause_task, resume_task, purge_queued, purge_delayed, retry_dead, purge_dead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upnext.core import outcome
from upnext.core.batches import CALL_BYTES
from upnext.core.keys import Keys
from upnext.core.outcome import FailureReason, JobStatus, Outcome
from upnext.engine.redis.scripts import Call, ident, script

BATCH = 200
"""Most jobs that one run of a script moves or removes, so that none holds the broker up for long."""

CHANGED, UNCHANGED, UNKNOWN_TASK = 1, 0, -1


def pause_task(keys: Keys, task: str) -> Call[int]:
    """-> CHANGED, UNCHANGED (it was paused already) or UNKNOWN_TASK."""
    return Call(script("pause_task"), [keys.paused, keys.tasks], [task, keys.bell], ident)


def resume_task(keys: Keys, task: str) -> Call[int]:
    """-> CHANGED, UNCHANGED (it was not paused) or UNKNOWN_TASK."""
    return Call(script("resume_task"), [keys.paused, keys.tasks], [task, keys.bell], ident)


_PURGED = outcome.encode(Outcome(JobStatus.CANCELLED, reason=FailureReason.CANCELLED, cause="purged"))


def purge_queued(keys: Keys, task: str, lane: str) -> Call[int]:
    """-> how many of the lane's waiting jobs this run removed; call until it is 0."""
    return Call(
        script("purge_queued"),
        [keys.stream(task, lane), *keys.of_an_end],
        [keys.result_prefix, keys.idem_prefix, keys.reply_prefix, task, _PURGED, BATCH, CALL_BYTES],
        ident,
    )


def purge_delayed(keys: Keys, task: str, cursor: str) -> Call[tuple[str, int, bool]]:
    """-> (next cursor, "0" at the end; how many jobs this run removed; whether it is to be repeated with the same cursor first)."""

    def parse(reply: list[Any]) -> tuple[str, int, bool]:
        return reply[0].decode(), reply[1], reply[2] == 1

    return Call(
        script("purge_delayed"),
        [keys.delayed, keys.delayed_jobs, *keys.of_an_end],
        [keys.result_prefix, keys.idem_prefix, keys.reply_prefix, task, _PURGED, cursor, BATCH, CALL_BYTES],
        parse,
    )


def _ids(reply: list[bytes]) -> list[str]:
    return [job_id.decode() for job_id in reply]


def retry_dead(keys: Keys, job_ids: Sequence[str]) -> Call[tuple[int, list[str]]]:
    """At most BATCH ids. -> (how many of them were looked at, which of these were not dead letters)."""
    return Call(
        script("retry_dead"),
        [keys.dead, keys.dead_jobs, keys.where, keys.limits, keys.notes, keys.dead_bytes, keys.flow_prefix],
        [keys.stream_prefix, keys.result_prefix, keys.bell, CALL_BYTES, *job_ids],
        lambda reply: (reply[0], _ids(reply[1:])),
    )


def purge_dead(keys: Keys, job_ids: Sequence[str]) -> Call[tuple[int, list[str]]]:
    """As retry_dead."""
    return Call(
        script("purge_dead"),
        [keys.dead, keys.dead_jobs, keys.notes, keys.dead_bytes],
        [keys.result_prefix, *job_ids],
        lambda reply: (len(job_ids), _ids(reply)),
    )
