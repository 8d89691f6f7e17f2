"""The JSON shapes of the contract, made from what the engine says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from upnext.cli.formatting import iso
from upnext.core import cron_words

if TYPE_CHECKING:
    from upnext.core.ownership import Skew
    from upnext.engine.views.crons import Cron
    from upnext.engine.views.daemons import Daemon
    from upnext.engine.views.ends import DeadGroup
    from upnext.engine.views.explain import Explanation
    from upnext.engine.views.jobs import Job
    from upnext.engine.views.tasks import Task


def job(one: Job) -> dict[str, Any]:
    """The contract's fields first; `where` tells the lane and entry of a job in a stream."""
    return {
        "job_id": one.job_id,
        "task": one.task,
        "status": one.status.value,
        "attempt": one.attempt,
        "max_attempts": one.max_attempts,
        "crashes": one.crashes,
        "submitted_at": iso(one.submitted_ms),
        "started_at": iso(one.started_ms),
        "finished_at": iso(one.finished_ms),
        "worker": one.worker,
        "parent_id": one.parent_id,
        "root_id": one.root_id,
        "result": orjson.loads(one.value_shown) if one.value_shown is not None else None,
        "error": {"type": one.error.type, "message": one.error.message, "traceback": one.error.traceback}
        if one.error
        else None,
        "cause": one.cause,
        "reason": one.reason.value if one.reason else None,
        "since": iso(one.since_ms),
        "due_at": iso(one.due_ms),
        "expires_at": iso(one.expires_ms),
        "cancel_requested_at": iso(one.cancel_ms),
        "dead_letter": one.dead_letter,
        "where": {"lane": one.lane, "entry_id": one.entry_id} if one.entry_id else None,
        "host": (one.worker_record or {}).get("host"),
        "pid": (one.worker_record or {}).get("pid"),
        "place": place(one.worker_record),
        "progress": one.progress_shown,
        "cost": None if one.cost is None else {"cpu_s": one.cost.cpu_s, "longest_step_s": one.cost.longest_step_s},
        "labels": one.labels,
        "via": one.via,
        "unreadable": one.unreadable,
    }


def place(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The process that has a job, by the record of its consumer; None for a job that none has."""
    if not record:
        return None
    return {field: record.get(field) for field in ("host", "daemon", "slot", "pid", "generation")}


def host(one: Daemon) -> dict[str, Any]:
    """One daemon; its slots as `status` has its children."""
    return {
        "host": one.host,
        "daemon": one.daemon,
        "name": one.name,
        "version": one.version,
        "state": one.state,
        "seen_at": iso(one.seen_ms),
        "slots": one.slots,
    }


def dead_letter(one: Job) -> dict[str, Any]:
    """A job's shape and the arguments that it was submitted with."""
    return {**job(one), "arguments": arguments(one)}


def dead_group(one: DeadGroup) -> dict[str, Any]:
    """`count`: dead letters kept now; `ended`: ends of this kind ever. `group` "": letters of an older version."""
    about = one.about
    return {
        "task": one.task,
        "group": one.group,
        "count": one.count,
        "ended": one.ended,
        "first": iso(one.first_ms),
        "last": iso(one.last_ms),
        "error": about.type if about is not None else None,
        "place": about.where or None if about is not None else None,
        "cause": about.cause or None if about is not None else None,
        "message": about.message or None if about is not None else None,
        "job_id": one.job_id,
    }


def arguments(one: Job) -> Any:
    """What the payload says, as people may see it; None where it isn't known."""
    return orjson.loads(one.payload_shown or b"null")


def task(one: Task) -> dict[str, Any]:
    limits = one.limits or {}
    rate = {"count": limits["rate"], "period_s": limits["period_s"]} if limits.get("rate") else None
    return {
        "task": one.name,
        "kind": one.kind,
        "service": one.service,
        "queued": one.queued,
        "running": one.running,
        "delayed": one.delayed,
        "dead": one.dead,
        "done": one.done,
        "failed": one.failed,
        "rate_per_s": round(one.rate_per_s, 3),
        "paused": one.paused,
        "limits": {"rate": rate, "concurrency": limits.get("concurrency")},
        "skew": _skew(one.skew),
        "unreadable": one.unreadable,
    }


def _skew(skew: Skew | None) -> dict[str, Any] | None:
    """Different code of one service side by side for over 10 minutes."""
    if skew is None:
        return None
    return {
        "since": iso(skew.since_ms),
        "files": list(skew.files),
        "signatures": list(skew.signatures),
        "hosts": list(skew.hosts),
    }


def cron(one: Cron) -> dict[str, Any]:
    return {
        "name": one.name,
        "schedule": one.schedule,
        "timezone": one.timezone,
        "last": iso(one.last_ms),
        "next": iso(one.next_ms),
        "service": one.service,
        "overlap": one.overlap,
        "skipped": one.skipped,
        "task": one.task,
        "kind": "schedule" if one.made else "cron",
        "paused": one.paused,
        "waits": one.waits,
        "overdue_since": iso(one.overdue_ms),
        "words": cron_words.words(one.schedule),
        "unreadable": one.unreadable,
    }


def explanation(one: Explanation) -> dict[str, Any]:
    return {"job_id": one.job_id, "gate": one.gate.value, "position": one.position, "detail": one.detail}
